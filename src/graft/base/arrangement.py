"""Where virtual tokens stand among the tokens and the padding of each row.

    causal:  [padding; filler; front; text; back; padding; filler]      each part keeps its order
    others:  [front; text; back; padding; filler]

Nothing that is masked stands between what is read: windows, distances and states that run along the row would
count it, and a row's text would depend on its neighbours. A causal row ends with its last token, so that text
can go on behind it; any other row begins at the first position.
"""

from typing import NamedTuple

import torch


class Arrangement(NamedTuple):
    """What stands where in the rows of one forward.

    order (B, L): the index in [front; text; back] of what stands at each place.
    mask (B, L): 1 where it is real.
    text (B, T), back (B, Q): the places of tokens and trailing vectors.
    """

    order: torch.Tensor
    mask: torch.Tensor
    text: torch.Tensor
    back: torch.Tensor

    def taken(self, front: torch.Tensor, middle: torch.Tensor, back: torch.Tensor) -> torch.Tensor:
        """Return what stands at each place, of three parts (B, p, ...), (B, T, ...) and (B, q, ...)."""
        return _rows(torch.cat([front, middle, back], 1), self.order)

    def text_of(self, states: torch.Tensor) -> torch.Tensor:
        """Return the states (B, T, D) of the tokens."""
        return _rows(states, self.text)

    def back_of(self, states: torch.Tensor) -> torch.Tensor:
        """Return the states (B, Q, D) of the trailing vectors."""
        return _rows(states, self.back)


def arranged(front: torch.Tensor, mask: torch.Tensor, back: torch.Tensor, *, causal: bool) -> Arrangement:
    """Return how rows are arranged.

    front (B, P), mask (B, T), back (B, Q): 1 where a vector or token is real.

    >>> arranged(torch.ones(1, 1), torch.tensor([[0, 1, 1]]), torch.zeros(1, 0), causal=True).order
    tensor([[1, 0, 2, 3]])
    """
    T = mask.shape[1]
    live, index = mask > 0, torch.arange(T, device=mask.device)[None]
    first = torch.where(live, index, T).amin(1, keepdim=True)
    last = torch.where(live, index, -1).amax(1, keepdim=True)
    left, right = (0, 4) if causal else (4, 4)
    text_rank = torch.where(index < first, left, torch.where(index > last, right, 2))
    front_rank, back_rank = torch.where(front > 0, 1, left), torch.where(back > 0, 3, right)
    order = torch.cat([front_rank, text_rank, back_rank], 1).argsort(dim=1, stable=True)
    whole = torch.cat([front.to(mask.dtype), mask, back.to(mask.dtype)], 1)
    places = order.argsort(1)
    P = front.shape[1]
    return Arrangement(order, whole.gather(1, order), places[:, P : P + T], places[:, P + T :])


def _rows(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Return values (B, L, ...) at index (B, N) of each row."""
    if values.ndim == 2:
        return values.gather(1, index)
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[2]))
