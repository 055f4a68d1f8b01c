"""How good answers are, as rows write it: scores, ranks and margins. Kept to a thousandth."""

from dataclasses import dataclass
from typing import Any

from graft.data.columns import (
    MARGIN,
    RANK,
    RANK_PAIRS,
    RANKS,
    SAYS,
    SCORE,
    SCORE_PAIRS,
    SCORES,
    Fields,
    as_number,
    blank,
)
from graft.data.rows import BadRow

LARGEST = 2_000_000  # in thousandths it is a whole number of 32 bits


@dataclass
class Measured:
    """Answers, each after its name, with their scores; higher is better.

    ranked: the scores are ranks with the other sign.  unused: what is said and not read.
    """

    said: list[tuple[str, Any]]
    scores: list[float]
    ranked: bool
    unused: tuple[str, ...]


def scores_of_pair(fields: Fields) -> tuple[float, float] | None:
    """Return the scores of a better and a worse answer, with a margin (margin, 0); None without any.

    Ranks are compared and give no scores. Raises BadRow for equal ones, and where the worse is the better.
    """
    margin = number(fields.get(MARGIN), MARGIN)
    if margin is not None:
        if margin < 0:
            raise _contradiction(f"{MARGIN!r} is {margin:g}")
        return (margin, 0.0) if margin else None
    for pairs, sign in ((SCORE_PAIRS, 1), (RANK_PAIRS, -1)):
        for names in pairs:
            if any(blank(fields.peek(name)) for name in names):
                continue
            better, worse = (number(fields[name], name) or 0.0 for name in names)
            if better == worse:
                detail = f"{names[0]!r} and {names[1]!r} are both {better:g}"
                raise BadRow("no preference", detail, "remove the row")
            if sign * better < sign * worse:
                raise _contradiction(f"{names[0]!r} is {better:g} and {names[1]!r} is {worse:g}")
            return (better, worse) if sign > 0 else None
    return None


def measured(fields: Fields, name: str) -> Measured:
    """Return the answers in a column with their scores or ranks, from another column or their own keys.

    An answer without a score is left out, and named as unused.
    """
    items = _items(fields, name)
    column = next((c for c in (*SCORES, *RANKS) if isinstance(fields.peek(c), list) and fields.peek(c)), None)
    objects = [item for item in items if isinstance(item, dict)]
    key = next((k for k in (*SCORE, *RANK) if any(not blank(item.get(k)) for item in objects)), None)
    if column is not None:
        values = fields[column]
        if len(values) != len(items):
            detail = f"{len(items)} {name}, {len(values)} {column}"
            raise BadRow("unequal lengths", detail, "give every answer one score")
    elif key is not None:
        values = [item.get(key) if isinstance(item, dict) else None for item in items]
    else:
        detail = f"{name!r} has neither scores nor ranks"
        raise BadRow("no scores", detail, "add scores: [...] or ranks: [...], one for each answer")
    used = {key} if column is None else set[str | None]()
    ranked = column in RANKS or (column is None and key in RANK)
    numbers = [number(value, f"{column or key} of {name}[{k}]") for k, value in enumerate(values)]
    known = [(k, score) for k, score in enumerate(numbers) if score is not None]
    if len(known) < 2:
        detail = f"{len(known)} of {len(items)} {name} have a score"
        raise BadRow("no scores", detail, "score two answers or more, or remove the row")
    said = [(f"{name}[{k}]", _said(items[k], f"{name}[{k}]", used)) for k, _ in known]
    rest = dict.fromkeys(k for item in objects for k in item if k not in used and not blank(item[k]))
    unused = [f"{key} of {name}" for key in rest]
    if len(known) < len(items):
        unused.append("answers without a score")
    return Measured(said, [-score if ranked else score for _, score in known], ranked, tuple(unused))


def number(value: Any, name: str) -> float | None:
    """Return a score, rounded to a thousandth; None for nothing. Raises BadRow for anything else."""
    if blank(value):
        return None
    score = as_number(value)
    if score is None or abs(score) > LARGEST:
        raise BadRow("bad score", f"{name!r} is {value!r:.40}", f"write a number, up to {LARGEST:,}")
    return round(score, 3)


def _items(fields: Fields, name: str) -> list[Any]:
    items = fields[name]
    if isinstance(items, dict) and items and all(isinstance(cells, list) for cells in items.values()):
        # Some data sets of the hub keep lists of objects by columns.
        items = [dict(zip(items, cells, strict=False)) for cells in zip(*items.values(), strict=False)]
    if not isinstance(items, list) or len(items) < 2:
        count = len(items) if isinstance(items, list) else type(items).__name__
        raise BadRow("one answer", f"{name!r} is {count}", "give two answers or more, as a list")
    return items


def _said(item: Any, name: str, used: set[str | None]) -> Any:
    """Return what an item says: itself, or the text in it; add the key to `used`."""
    if not isinstance(item, dict):
        return item
    if isinstance(item.get("role"), str):
        used.update(item)
        return {key: value for key, value in item.items() if key not in (*SCORE, *RANK)}
    key = next((key for key in SAYS if not blank(item.get(key))), None)
    if key is None:
        raise BadRow("no answer", f"{name} has no text", f"write it as one of {', '.join(SAYS)}")
    used.add(key)
    return item[key]


def _contradiction(detail: str) -> BadRow:
    remedy = "exchange the two answers, or remove the row"
    return BadRow("contradiction", f"{detail}: the rejected answer is the better one", remedy)
