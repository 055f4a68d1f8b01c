"""Multiply by Kronecker products without building them: (A ⊗ B) x = vec(A X Bᵀ).

A (a₁, a₂), B (b₁, b₂); X (a₂, b₂) is x (a₂b₂,) row by row, and vec (a₁b₁,) reads row by row again.
"""

import math

import torch
from torch.nn import functional as F


def kron_linear(x: torch.Tensor, A: torch.Tensor, *B: torch.Tensor) -> torch.Tensor:
    """Return (A ⊗ B) x over the last dimension of x. B may be given as factors, whose product it is.

    >>> A, B = torch.tensor([[1.0, 2], [3, 4]]), torch.tensor([[0.0, 1], [1, 0]])
    >>> kron_linear(torch.tensor([1.0, 0, 0, 0]), A, B).tolist()  # the first column of A ⊗ B
    [0.0, 1.0, 0.0, 3.0]
    """
    X = x.unflatten(-1, (A.shape[1], B[-1].shape[1]))
    for factor in reversed(B):
        X = F.linear(X, factor)
    return F.linear(X.mT, A).mT.flatten(-2)


def near_root(dimension: int, limit: int | None = None) -> tuple[int, int]:
    """Return two divisors, the smaller first: the pair nearest the square root.

    limit: the largest that the smaller one may be.

    >>> near_root(768), near_root(11008), near_root(127), near_root(768, limit=10)
    ((24, 32), (86, 128), (1, 127), (8, 96))
    """
    most = min(math.isqrt(dimension), limit or dimension)
    small = next(m for m in range(most, 0, -1) if dimension % m == 0)
    return small, dimension // small
