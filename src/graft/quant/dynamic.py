"""The 8-bit dynamic map: 256 levels, fine near zero and coarse near one, made for the moments of Adam.

    decade i = 0..6:  the midpoints of 2ⁱ equal cells of [0.1, 1] (2ⁱ⁺¹ if unsigned), times 10^(i−6)
    with both signs if signed; and 0 and 1

Block-wise states (Dettmers et al. 2022, arXiv 2110.02861): block 256, absmax in fp32, the nearest level; the
signed map for the first moment, the unsigned one for the second. 2.03 bytes per parameter instead of 8.
"""

import torch
from torch import Tensor

from graft import kernels
from graft.kernels import Codebook


def dynamic_map(signed: bool) -> tuple[float, ...]:
    """Return the 256 levels in ascending order, as fp32 values."""
    values = [0.0, 1.0]
    for decade in range(7):
        cells = 2 ** (decade + (not signed))
        edges = torch.linspace(0.1, 1, cells + 1, dtype=torch.float32, device="cpu")
        middles = (10 ** (decade - 6) * ((edges[:-1] + edges[1:]) / 2)).tolist()
        values += middles + ([-m for m in middles] if signed else [])
    return tuple(sorted(values))


SIGNED = Codebook("dynamic", dynamic_map(signed=True))
UNSIGNED = Codebook("dynamic, unsigned", dynamic_map(signed=False))


def quantise_state(x: Tensor, signed: bool, block: int = 256) -> tuple[Tensor, Tensor]:
    """Quantise x of any shape -> codes (its shape) uint8 and absmax (⌈n/block⌉,) fp32.

    Blocks run over the flat tensor.  signed: use the map with both signs; the unsigned one is for x >= 0.
    """
    flat = x.detach().reshape(-1)
    whole = flat.numel() // block * block
    parts = [part for part in (flat[:whole].view(-1, block), flat[whole:].view(1, -1)) if part.numel()]
    quantise = kernels.find("quantise_blocks", x.device.type)
    done = [quantise(part, SIGNED if signed else UNSIGNED, block) for part in parts]
    codes = torch.cat([c.flatten() for c, _ in done]) if len(done) > 1 else done[0][0]
    return codes.view(x.shape), torch.cat([a.flatten() for _, a in done])


def dequantise_state(
    codes: Tensor, absmax: Tensor, signed: bool, out: Tensor | None = None, block: int = 256
) -> Tensor:
    """Return the values of a state in fp32, or write them into `out` (contiguous, the shape of codes)."""
    out = torch.empty(codes.shape, dtype=torch.float32, device=codes.device) if out is None else out
    dequantise = kernels.find("dequantise_blocks", codes.device.type)
    book = SIGNED if signed else UNSIGNED
    flat = codes.view(-1)
    target = out.view(-1)
    whole = flat.numel() // block * block
    if whole:
        dequantise(
            flat[:whole].view(-1, block), absmax[: whole // block, None], book, target[:whole].view(-1, block)
        )
    if whole < flat.numel():
        dequantise(flat[whole:].view(1, -1), absmax[-1:, None], book, target[whole:].view(1, -1))
    return out
