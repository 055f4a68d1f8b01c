"""Random numbers as a pure function of their address, and the two kinds of noise that pretraining draws.

    u(address)_k = splitmix64(hash(address) + k φ64) / 2⁶⁴

The same (seed, epoch, row) gives the same noise on every machine and in any order; there is no state to save.
Masked LM: 15 % of the tokens; of these 80 % [MASK], 10 % another token, 10 % unchanged (Devlin et al. 2019,
§3.1). Span corruption: 15 % in spans of mean length 3, split at random (Raffel et al. 2020, §3.1.4;
text-to-text-transfer-transformer, `random_spans_helper`). splitmix64: Steele, Lea and Flood 2014.
"""

from itertools import pairwise

import torch
from torch import Tensor

from graft.data.encode import IGNORED

DENSITY, SPAN = 0.15, 3.0
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # 2⁶⁴/φ as a signed number; sums and products wrap
_MIX = ((30, 0xBF58476D1CE4E5B9 - (1 << 64)), (27, 0x94D049BB133111EB - (1 << 64)), (31, 1))


def bits(n: int, *address: int) -> Tensor:
    """Return n pseudo-random int64 numbers.  address: whole numbers; equal ones give equal results."""
    state = torch.zeros(1, dtype=torch.int64)
    for part in address:
        state = _mixed(state + _GOLDEN + part)
    return _mixed(state + _GOLDEN * torch.arange(1, n + 1))


def uniform(n: int, *address: int) -> Tensor:
    """Return n numbers in [0, 1), float64."""
    return _shifted(bits(n, *address), 11).double() / (1 << 53)


def shuffled(n: int, *address: int) -> Tensor:
    """Return a permutation of range(n)."""
    return torch.argsort(bits(n, *address), stable=True)


def _shifted(x: Tensor, by: int) -> Tensor:
    return (x >> by) & ((1 << (64 - by)) - 1)  # torch shifts the sign in; the mask removes it


def _mixed(x: Tensor) -> Tensor:
    for by, factor in _MIX:
        x = (x ^ _shifted(x, by)) * factor
    return x


def masked(
    ids: Tensor, allowed: Tensor, mask_id: int, ordinary: Tensor, *address: int
) -> tuple[Tensor, Tensor]:
    """Hide 15 % of the allowed tokens, at least one. Return the new ids and the labels, both (T,).

    allowed: (T,) bool.  ordinary: the ids of the vocabulary that may replace another token.
    """
    places = allowed.nonzero()[:, 0]
    chosen = places[shuffled(len(places), *address, 0)[: max(1, round(DENSITY * len(places)))]]
    labels = torch.full_like(ids, IGNORED)
    labels[chosen] = ids[chosen]
    fate = uniform(len(chosen), *address, 1)
    other = ordinary[(uniform(len(chosen), *address, 2) * len(ordinary)).long()]
    noisy = ids.clone()
    noisy[chosen] = torch.where(fate < 0.8, mask_id, torch.where(fate < 0.9, other, ids[chosen]))
    return noisy, labels


def counts(length: int) -> tuple[int, int]:
    """Return how many of `length` tokens are noise, and in how many spans. Spans never touch each other."""
    noise = min(max(1, round(DENSITY * length)), length - 1)
    return noise, min(max(1, round(noise / SPAN)), length - noise)


def raw_length(inputs: int) -> int:
    """Return how long a text may be if its corrupted form, with sentinels and EOS, must fit into `inputs`.

    >>> raw_length(512)
    568
    """
    length = 2
    while length + 1 - counts(length + 1)[0] + counts(length + 1)[1] + 1 <= inputs:
        length += 1
    return length


def corrupted(ids: Tensor, sentinels: list[int], eos: int, *address: int) -> tuple[list[int], list[int]]:
    """Return what the encoder reads and what the decoder must write.

        kept₀ S₀ kept₁ S₁ ... EOS        S₀ noise₀ S₁ noise₁ ... EOS

    The lengths of kept and noisy runs are random; no run is empty.
    """
    noise, spans = counts(len(ids))
    spans = min(spans, len(sentinels))
    kept = _parts(len(ids) - noise, spans, *address, 0)
    hidden = _parts(noise, spans, *address, 1)
    read: list[int] = []
    write: list[int] = []
    at = 0
    for sentinel, keep, hide in zip(sentinels, kept, hidden, strict=False):
        read += [*ids[at : at + keep].tolist(), sentinel]
        write += [sentinel, *ids[at + keep : at + keep + hide].tolist()]
        at += keep + hide
    return [*read, eos], [*write, eos]


def _parts(total: int, parts: int, *address: int) -> list[int]:
    """Divide `total` into positive numbers at random; every division is equally likely."""
    edges = [0, *sorted((shuffled(total - 1, *address)[: parts - 1] + 1).tolist()), total]
    return [b - a for a, b in pairwise(edges)]
