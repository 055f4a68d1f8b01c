"""Choose rows by a seed: those that are held out, and the sample that a limit takes.

Which rows are chosen depends on their content and the seed alone, not on their order, nor on the method that
is trained: every run with the same rows and the same data.seed has the same ones.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from itertools import islice

from graft.data.rows import Row
from graft.errors import DataError


def split(rows: Sequence[Row], share: float, seed: int) -> tuple[list[Row], list[Row]]:
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
    groups: dict[bytes, list[int]] = {}
    for i, row in enumerate(rows):
        groups.setdefault(row.group(), []).append(i)
    ordered = sorted(groups, key=lambda key: _drawn(key, seed))
    held: set[int] = set()
    for key in ordered:
        if len(held) + len(groups[key]) <= wanted:
            held.update(groups[key])
    for key in ordered:  # only where rows repeat so often that whole groups do not add up
        held.update(islice((i for i in groups[key] if i not in held), wanted - len(held)))
    return [r for i, r in enumerate(rows) if i not in held], [r for i, r in enumerate(rows) if i in held]


def sample(rows: Sequence[Row], limit: int | None, seed: int) -> list[Row]:
    """Return `limit` of the rows in their order, drawn at random by the seed; all of them without a limit.

    Of rows with a label each class gives its share, rounded so that the shares add up to the limit.
    """
    if limit is None or limit >= len(rows):
        return list(rows)
    seen: Counter[bytes] = Counter()
    drawn = []
    for row in rows:
        key = row.key()
        drawn.append(_drawn(key + seen[key].to_bytes(8, "little"), seed))  # equal rows are drawn apart
        seen[key] += 1
    classes: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        classes.setdefault(str(row.value[1]) if row.kind == "label" else "", []).append(i)
    taken: set[int] = set()
    for name, count in _shares(
        {name: len(members) for name, members in classes.items()}, limit, seed
    ).items():
        taken.update(sorted(classes[name], key=lambda i: drawn[i])[:count])
    return [row for i, row in enumerate(rows) if i in taken]


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
