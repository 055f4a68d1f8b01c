"""The low-rank updates of an adapter, as one pair of factors for each module.

    s·B A = Σᵢ sᵢ Bᵢ Aᵢ        A (R, in), B (out, R)

Where several methods meet at one module, their factors stand side by side.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from graft.core.insert import LowRankForm

if TYPE_CHECKING:
    from graft.base.adapter import Adapter


def rank_of(adapter: "Adapter") -> int:
    """Return the largest rank of an adapter's modules; 0 if none is low-rank."""
    return max(ranks_of(adapter).values(), default=0)


def ranks_of(adapter: "Adapter") -> dict[str, int]:
    """Return the rank at each module."""
    return {module: sum(len(A) for A, _, _ in of) for module, of in _forms(adapter).items()}


def factors_of(adapter: "Adapter") -> tuple[dict[str, tuple[torch.Tensor, torch.Tensor]], float]:
    """Return (A, B) of each module in fp32, all with the same scale s, and s.

    Inserts that are more than a low-rank update are left out.
    """
    forms = _forms(adapter)
    scale = next((s for of in forms.values() for _, _, s in of if s), 1.0)  # all are 0: B is 0 then
    factors = {}
    for module, of in forms.items():
        A = torch.cat([A.detach().float() for A, _, _ in of])
        B = torch.cat([B.detach().float() * (s / scale) for _, B, s in of], dim=1)
        factors[module] = A, B
    return factors, scale


def _forms(adapter: "Adapter") -> dict[str, Sequence[LowRankForm]]:
    found: dict[str, list[LowRankForm]] = {}
    for site, insert in adapter.inserts:
        if (form := insert.low_rank()) is not None:
            found.setdefault(site.name, []).append(form)
    return dict(found)
