"""Schema: which values the settings of a method may have, as the annotations of its fields say.

    r: Rank = 8  # rank of the update            a whole number from 1 to 4096
    rank_pattern: dict[str, Rank]                the same for every value

A field is annotated once. A card reads the annotation as text, for recipes and pages; the class is checked by
it when a method is made; the settings of an adapter's files are checked by it before anything uses them.
"""

import functools
import math
import operator
import reprlib
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin, get_type_hints

from graft.errors import UsageError

MAX_RANK = 4096  # no method needs more, and only a damaged or hostile file asks for it
MANY = 2**20  # of what is counted: vectors, classes, features of a block
FEW = 256  # of what is made one after the other: layers, factors, terms
LAST = 2**31 - 1  # the largest step or id
STEEPEST = 1e4  # the largest scale of an update
LONGEST = 200  # letters of a value in a message
WHOLE = 2**63  # a tensor holds whole numbers below it


@dataclass(frozen=True)
class Between:
    """A range of numbers.  above, below: the end itself is not part of it."""

    low: float
    high: float
    above: bool = False
    below: bool = False

    def holds(self, value: float) -> bool:
        """Return whether a number lies in the range."""
        lowest = value > self.low if self.above else value >= self.low
        return lowest and (value < self.high if self.below else value <= self.high)

    def __str__(self) -> str:
        low = f"above {self.low:g}" if self.above else f"from {_number(self.low)}"
        return f"{low} {'to below' if self.below else 'to'} {_number(self.high)}"

    __repr__ = __str__  # in the signatures that help() shows


Rank = Annotated[int, Between(1, MAX_RANK)]
Count = Annotated[int, Between(1, MANY)]
Amount = Annotated[int, Between(0, MANY)]  # 0: there are none
Few = Annotated[int, Between(1, FEW)]
Steps = Annotated[int, Between(0, LAST)]
Id = Annotated[int, Between(0, LAST)]
Share = Annotated[float, Between(0, 1, below=True)]  # of what is dropped: not all of it
Portion = Annotated[float, Between(0, 1, above=True)]  # of what is chosen: not nothing
Memory = Annotated[float, Between(0, 1, above=True, below=True)]  # of a running mean
Weight = Annotated[float, Between(0, 1e6)]  # of a term of the loss
Positive = Annotated[float, Between(0, 1e6, above=True)]
Rate = Annotated[float, Between(0, 1e6, above=True)]  # of learning
Scale = Annotated[float, Between(-STEEPEST, STEEPEST)]
Alpha = Annotated[float, Between(-STEEPEST * MAX_RANK, STEEPEST * MAX_RANK)]  # of it and the rank: a scale

# Several of one kind: tuples in what is kept. A list is as good, so checkers of types take any sequence.
if TYPE_CHECKING:
    Names = Sequence[str]
    Numbers = Sequence[int]
    Ids = Sequence[Id]
else:
    Names, Numbers, Ids = tuple[str, ...], tuple[int, ...], tuple[Id, ...]

LEAVES: dict[str, Any] = {
    "bool": bool, "int": int, "float": float, "str": str, "Any": Any, "Rank": Rank, "Count": Count,
    "Amount": Amount, "Few": Few, "Steps": Steps, "Id": Id, "Share": Share, "Portion": Portion,
    "Memory": Memory, "Weight": Weight, "Positive": Positive, "Rate": Rate, "Scale": Scale, "Alpha": Alpha,
}  # fmt: skip
# The types that settings may have, as their annotations write them; ` | ` joins several.
TYPES: dict[str, Any] = {
    "None": None,
    **LEAVES,
    "Names": Names,
    "Numbers": Numbers,
    "Ids": Ids,
    **{f"tuple[{name}, ...]": types.GenericAlias(tuple, (leaf, ...)) for name, leaf in LEAVES.items()},
    **{f"dict[str, {name}]": types.GenericAlias(dict, (str, leaf)) for name, leaf in LEAVES.items()},
    **{
        f"dict[str, list[{name}]]": types.GenericAlias(dict, (str, types.GenericAlias(list, (leaf,))))
        for name, leaf in LEAVES.items()
    },
}


def type_of(annotation: str) -> Any:
    """Return the type that an annotation means. Raises UsageError for a type that is not one of TYPES.

    >>> type_of("dict[str, list[bool]] | None") == dict[str, list[bool]] | None
    True
    """
    parts = annotation.split(" | ")
    unknown = [part for part in parts if part not in TYPES]
    if unknown:
        raise UsageError(
            f"a setting is annotated `{annotation}`",
            f"one of {', '.join(['None', *LEAVES])}, a tuple or dict of these, or several joined by ` | `",
            f"write it with these, or add `{unknown[0]}` to TYPES in graft/core/schema.py",
        )
    return functools.reduce(operator.or_, (TYPES[part] for part in parts))


def in_words(kind: Any) -> str:
    """Return a type as text, with its range.

    >>> in_words(type_of("Rank | None")), in_words(type_of("dict[str, Share]"))
    ('int from 1 to 4096 | None', 'dict[str, float from 0 to below 1]')
    """
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return f"{in_words(inner[0])} {inner[1]}"
    if origin in (Union, types.UnionType):
        return " | ".join(in_words(part) for part in inner)
    if origin is not None:
        listed = ", ".join("..." if part is ... else in_words(part) for part in inner)
        return f"{origin.__name__}[{listed}]"
    return "None" if kind in (None, type(None)) else str(getattr(kind, "__name__", kind))


def fits(value: Any, kind: Any) -> bool:
    """Return whether a value is of a type. True is no number and "8" is none; numbers are finite.

    A list counts as a tuple, as files and recipes write one. It stops at the first entry that does not fit.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return fits(value, inner[0]) and inner[1].holds(value)
    if origin in (Union, types.UnionType):
        return any(fits(value, part) for part in inner)
    if origin is dict:
        return isinstance(value, Mapping) and all(
            fits(key, inner[0]) and fits(entry, inner[1]) for key, entry in value.items()
        )
    if origin in (tuple, list):
        several = isinstance(value, list | tuple | set | frozenset)
        return several and all(fits(entry, inner[0]) for entry in value)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and _is_finite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and -WHOLE <= value < WHOLE
    if kind in (None, type(None)):
        return value is None
    return kind is Any or not isinstance(kind, type) or isinstance(value, kind)


@functools.lru_cache(maxsize=256)
def schema_of(cls: type) -> dict[str, Any]:
    """Return {field: type} of a dataclass."""
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in fields(cls)}


def misfits(kinds: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, str]:
    """Return {name: what it must be} of the settings that do not fit; names without a type are left out."""
    return {
        name: in_words(kinds[name])
        for name, value in given.items()
        if name in kinds and not fits(value, kinds[name])
    }


def shown(value: Any) -> str:
    """Return a value as text for a message: a large one is cut before it is written out whole.

    >>> shown({"q_proj": [1] * 5000})
    "{'q_proj': [1, 1, 1, 1, 1, 1, ...]}"
    """
    try:
        text = _SHORT.repr(value)
        return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."
    except ValueError:  # Python writes out no number of more than 4,300 digits
        return f"a {type(value).__name__} too long to show"


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float holds
        return False


def _number(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
