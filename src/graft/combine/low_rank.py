"""The nearest product of two small factors to a matrix, and the LoRA that is made of such factors.

    D ≈ B A        A = √S·Vᵀ (r, in), B = U·√S (out, r), of the r largest singular values of D (out, in)
    kept = Σ_{i ≤ r} S_i² / ‖D‖²

No matrix of rank r comes nearer (Eckart and Young 1936). A large matrix is not decomposed whole where r is
given: the randomised way of Halko et al. 2009 (0909.4061) reads it a few times instead.
"""

from collections.abc import Mapping
from statistics import mode
from typing import TYPE_CHECKING, Any

import torch

from graft.base.adapter import Adapter
from graft.methods.lora import LoRA

if TYPE_CHECKING:
    from graft.base.base import Base

Factors = tuple[torch.Tensor, torch.Tensor]  # A (r, in), B (out, r)
LARGE = 1024  # from this size on a whole decomposition takes seconds
SPARE = 16  # directions more than asked for: they carry the error of the randomised way
ROUNDS = 4  # power iterations, which part singular values that lie close together


def truncated(
    matrix: torch.Tensor, r: int | None, energy: float | None = None
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Return (A, B, kept) of a matrix in fp32.

    r: the largest rank.  energy: the smallest rank that keeps this share of ‖D‖²; at most r where both are
    given.
    """
    size = min(matrix.shape)
    if r is not None and energy is None and size >= LARGE and r + SPARE < size // 4:
        with torch.random.fork_rng():
            torch.manual_seed(0)  # the same factors every time
            U, S, V = torch.svd_lowrank(matrix, q=r + SPARE, niter=ROUNDS)
        Vt = V.T
    else:
        U, S, Vt = torch.linalg.svd(matrix, full_matrices=False)
    total = matrix.square().sum()
    share = S.square().cumsum(0) / total.clamp(min=torch.finfo(total.dtype).tiny)
    rank = min(r or size, size)
    if energy is not None:
        rank = min(rank, int((share < energy).sum()) + 1)
    root = S[:rank].sqrt()
    return root[:, None] * Vt[:rank], U[:, :rank] * root, min(float(share[rank - 1]), 1.0)


def shortened(A: torch.Tensor, B: torch.Tensor, r: int) -> Factors:
    """Return the best factors of rank r of B A without forming it: with B = PR, Aᵀ = QT it is P (R Tᵀ) Qᵀ."""
    P, R = torch.linalg.qr(B)
    Q, T = torch.linalg.qr(A.T)
    inner_A, inner_B, _ = truncated(R @ T.T, r)
    return inner_A @ Q.T, P @ inner_B


def attach(base: "Base", name: str, factors: Mapping[str, Factors], **settings: Any) -> Adapter:
    """Attach a new LoRA of scale 1 that holds these factors by site.  settings: further ones of LoRA."""
    ranks = {site: len(A) for site, (A, _) in factors.items()}
    r = mode(ranks.values())
    odd = {site: rank for site, rank in ranks.items() if rank != r}
    alphas = {site: float(rank) for site, rank in odd.items()}
    method = LoRA(
        r=r, lora_alpha=r, rank_pattern=odd, alpha_pattern=alphas, target_modules=tuple(ranks), **settings
    )
    adapter = base.attach(name, method)
    with torch.no_grad():
        for site, insert in adapter.inserts:
            form = insert.low_rank()
            if form is not None:
                for factor, given in zip(form[:2], factors[site.name], strict=True):
                    factor.copy_(given)
    return adapter
