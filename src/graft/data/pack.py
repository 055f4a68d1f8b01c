"""Packing: several documents share a row of the batch, and none of them sees another.

    allowed(i, j) = document(i) = document(j)  and  (j <= i for causal models)

Positions restart at every document. In a causal model its first token is no target. Restarted positions alone
would let documents see each other: the mask separates them. Documents are distributed by best fit, longest
first (Johnson 1973).
"""

from bisect import bisect_left, insort
from collections.abc import Sequence

import torch
from torch import Tensor

from graft.data.encode import IGNORED

GRAIN = 16  # lengths are rounded up to a multiple of this


def best_fit(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Return the indices of `lengths` in groups that add up to at most `size`, by best fit decreasing.

    >>> best_fit([3, 7, 5, 2], 10)
    [[1, 0], [2, 3]]
    """
    groups: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (room left, group), ascending
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        at = bisect_left(rooms, (lengths[i], -1))
        if at == len(rooms):
            room, group = max(size, lengths[i]), len(groups)
            groups.append([])
        else:
            room, group = rooms.pop(at)
        groups[group].append(i)
        insort(rooms, (room - lengths[i], group))
    return groups


def packed(
    groups: Sequence[Sequence[tuple[list[int], list[int]]]],
    *,
    pad: int,
    causal: bool,
    first_position: int = 0,
    limit: int = 0,
) -> tuple[dict[str, Tensor], Tensor]:
    """Build the model's inputs and labels from groups of (ids, labels), one group per row.

    pad: the id that fills rows up.  first_position: position id of a document's first token.
    limit: up to which T is rounded up (see `rounded`).

    Returns input_ids (B, T), attention_mask (B, 1, T, T) bool and position_ids (B, T); and labels (B, T),
    IGNORED on padding and, for causal models, on each document's first token. Padding sees padding only, so
    no row of the mask is empty.
    """
    width = rounded(max(sum(len(ids) for ids, _ in group) for group in groups), limit)
    ids = torch.full((len(groups), width), pad)
    labels = torch.full((len(groups), width), IGNORED)
    positions = torch.full((len(groups), width), first_position)
    document = torch.zeros(len(groups), width, dtype=torch.int32)
    for row, group in enumerate(groups):
        at = 0
        for number, (tokens, targets) in enumerate(group, 1):
            end = at + len(tokens)
            ids[row, at:end], labels[row, at:end] = torch.tensor(tokens), torch.tensor(targets)
            if causal:
                labels[row, at] = IGNORED
            positions[row, at:end] = torch.arange(first_position, first_position + len(tokens))
            document[row, at:end] = number
            at = end
    allowed = document[:, None, :, None] == document[:, None, None, :]
    inputs = {
        "input_ids": ids,
        "attention_mask": allowed.tril() if causal else allowed,
        "position_ids": positions,
    }
    return inputs, labels


def rounded(width: int, limit: int) -> int:
    """Round a length up to a multiple of GRAIN, but not above `limit`.

    torch compiles a kernel for every new shape and keeps it. Without rounding, a run of short rows spent half
    its time on this and grew by two MiB a step.

    >>> rounded(33, 512), rounded(33, 40), rounded(33, 0)
    (48, 40, 33)
    """
    return max(width, min(-(-width // GRAIN) * GRAIN, limit))
