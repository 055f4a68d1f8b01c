"""Choose rows by a seed: those that are held out, and the sample that a limit takes.

Which rows are chosen depends on their content and the seed alone, not on their order, nor on the method that
is trained: every run with the same rows and the same data.seed has the same ones.
"""

import hashlib
from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np

from graft.data.row_store import as_numbers, digests, pick
from graft.data.rows import Row
from graft.errors import DataError


def split(rows: Sequence[Row], share: float, seed: int) -> tuple[Sequence[Row], Sequence[Row]]:
    """Return the rows without and with the held-out ones: exactly round(share · rows) of them, at least one.

    Equal rows, and rows that ask one prompt or compare answers to it, stay on one side wherever the number
    allows it.
    Raises DataError if no row would be left to train on.
    """
    wanted = max(1, round(share * len(rows)))
    if wanted >= len(rows):
        raise DataError(
            f"data.eval={share} holds out {wanted} of {len(rows)} rows",
            "rows left to train on",
            "give more rows, or set data.eval=null",
        )
    different, first, group, sizes = np.unique(
        digests(rows, Row.group), return_index=True, return_inverse=True, return_counts=True
    )
    drawn = as_numbers(_drawn(int(key).to_bytes(8, "big"), seed) for key in different)
    members, ends = np.argsort(group, kind="stable"), np.cumsum(sizes)
    held, left = np.zeros(len(rows), dtype=bool), wanted
    in_order = np.lexsort((first, drawn)).tolist()
    for whole in (True, False):  # not whole: only where rows repeat so often that groups do not add up
        for one in in_order:
            if not left:
                break
            if not whole or sizes[one] <= left:
                own = members[ends[one] - sizes[one] : ends[one]]
                free = own[~held[own]][:left]
                held[free] = True
                left -= len(free)
    return pick(rows, np.flatnonzero(~held)), pick(rows, np.flatnonzero(held))


def sample(rows: Sequence[Row], limit: int | None, seed: int) -> Sequence[Row]:
    """Return `limit` of the rows in their order, drawn at random by the seed; all of them without a limit.

    Of rows with a label each class gives its share, rounded so that the shares add up to the limit.
    """
    if limit is None or limit >= len(rows):
        return rows
    keys = array("Q")
    classes: dict[str, array] = {}
    for i, row in enumerate(rows):
        keys.append(int.from_bytes(row.key(), "big"))
        classes.setdefault(str(row.value[1]) if row.kind == "label" else "", array("q")).append(i)
    again = _occurrences(np.frombuffer(keys, dtype=np.uint64)).tolist()  # equal rows are drawn apart
    pairs = zip(keys, again, strict=True)
    drawn = as_numbers(_drawn(key.to_bytes(8, "big") + n.to_bytes(8, "little"), seed) for key, n in pairs)
    taken = np.zeros(len(rows), dtype=bool)
    for name, count in _shares({name: len(own) for name, own in classes.items()}, limit, seed).items():
        own = np.frombuffer(classes[name], dtype=np.int64)
        taken[own[np.argsort(drawn[own], kind="stable")[:count]]] = True
    return pick(rows, np.flatnonzero(taken))


def _occurrences(keys: Any) -> Any:
    """Return how often each key stood before.

    >>> _occurrences(np.array([7, 5, 7, 7])).tolist()
    [0, 0, 1, 2]
    """
    order = np.argsort(keys, kind="stable")
    _, begins, sizes = np.unique(keys[order], return_index=True, return_counts=True)
    found = np.empty(len(keys), dtype=np.int64)
    found[order] = np.arange(len(keys)) - np.repeat(begins, sizes)
    return found


def sampling(taken: Sequence[Row], rows: Sequence[Row], seed: int) -> str:
    """Return in words what `sample` took of the rows, "" if it took all of them."""
    if len(taken) == len(rows):
        return ""
    classes, known = ({str(row.value[1]) for row in part if row.kind == "label"} for part in (taken, rows))
    of_classes = f"; {len(classes)} of {len(known)} classes are in them" if known else ""
    return f"{len(taken):,} of {len(rows):,} rows, sampled by seed {seed}{of_classes}"


def _shares(sizes: dict[str, int], limit: int, seed: int) -> dict[str, int]:
    """Return how many rows each class gives: its share, one more where the largest fractions were lost."""
    total = sum(sizes.values())
    shares = {name: limit * size // total for name, size in sizes.items()}
    lost = sorted(sizes, key=lambda name: (-(limit * sizes[name] % total), _drawn(name.encode(), seed)))
    for name in lost[: limit - sum(shares.values())]:
        shares[name] += 1
    return shares


def _drawn(key: bytes, seed: int) -> bytes:
    """Return the random number of a key: it decides the order in which rows are taken."""
    salt = seed.to_bytes(8, "little", signed=True)
    return hashlib.blake2b(key, key=salt, digest_size=8).digest()
