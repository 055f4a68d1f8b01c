"""FP4: a sign and three bits of magnitude, in bitsandbytes' own order of bit patterns.

    magnitude of 0b000..0b111 = {0, 0.0625, 8, 12, 4, 6, 2, 3} / 12;   bit 3 is the sign

The tiny 0.0625 is a quirk of that library, kept so that bytes mean the same; OCP's E2M1 is another format.
"""

from graft.kernels import Codebook

_MAGNITUDES = tuple(value / 12 for value in (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0))

FP4 = Codebook("fp4", _MAGNITUDES + tuple(-value for value in _MAGNITUDES))
