"""NF4: sixteen levels at quantiles of the normal distribution, 8 positive, 7 negative and an exact zero.

    p = Φ⁻¹(linspace(o, ½, 9)[:8]),  n = −Φ⁻¹(linspace(o, ½, 8)[:7]),  o = 0.9677083
    levels = sort(n ∪ {0} ∪ p) / max                               code = position in this order

The zero keeps padding and zero weights exact. Dettmers et al. 2023, arXiv 2305.14314: the table is that of
the authors' code, which equation 4 of the paper does not give; the formula above does, to 1e-7.
"""

from graft.kernels import Codebook

NF4 = Codebook(
    "nf4",
    (
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ),
)
