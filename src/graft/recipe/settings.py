"""Check the settings of a method or a stage against the fields of its class, which is read, not imported."""

import operator
from collections.abc import Mapping
from functools import reduce
from typing import Annotated, Any

from pydantic import ConfigDict, Strict, ValidationError, create_model

from graft.core.cards import REQUIRED, Setting, Source
from graft.errors import UsageError, nearest

Settings = dict[str, Any]

# Strict: true is no number, and "8" is none either.
_Bool = Annotated[bool, Strict()]
_Int = Annotated[int, Strict()]
_Float = Annotated[float, Strict()]
_Str = Annotated[str, Strict()]
# The types that settings may have, as their annotations write them; ` | ` joins several.
TYPES: dict[str, Any] = {
    "None": None,
    "bool": _Bool,
    "int": _Int,
    "float": _Float,
    "str": _Str,
    "tuple[int, ...]": tuple[_Int, ...],
    "tuple[str, ...]": tuple[_Str, ...],
    "tuple[Any, ...]": tuple[Any, ...],
    "dict[str, int]": dict[_Str, _Int],
    "dict[str, float]": dict[_Str, _Float],
    "dict[str, list[bool]]": dict[_Str, list[_Bool]],
    "dict[str, list[int]]": dict[_Str, list[_Int]],
}


def type_of(annotation: str) -> Any:
    """Return the type that an annotation means. Raises UsageError for a type that is not one of TYPES.

    >>> type_of("dict[str, list[bool]] | None") == dict[_Str, list[_Bool]] | None
    True
    """
    parts = annotation.split(" | ")
    unknown = [part for part in parts if part not in TYPES]
    if unknown:
        raise UsageError(
            f"a setting is annotated `{annotation}`",
            f"one of {', '.join(TYPES)}, or several of them joined by ` | `",
            f"write it with these, or add `{unknown[0]}` to TYPES in graft/recipe/settings.py",
        )
    return reduce(operator.or_, (TYPES[part] for part in parts))


def problems_of(owner: str, fields: Mapping[str, Setting], given: Settings, prefix: str) -> dict[str, str]:
    """Return what is wrong with the given settings, by dotted key.

    owner: name of the method or stage.  fields: its settings.  prefix: of the keys.
    """
    types: dict[str, Any] = {
        name: (type_of(setting.type), ... if setting.default is REQUIRED else None)
        for name, setting in fields.items()
    }
    config = ConfigDict(
        extra="forbid", allow_inf_nan=False, protected_namespaces=(), arbitrary_types_allowed=True
    )
    try:
        create_model(owner, __config__=config, **types).model_validate(given)
    except ValidationError as error:
        details = reversed(error.errors(include_url=False))
        return dict(_problem(owner, fields, prefix, detail) for detail in details)
    return {}


def filled(fields: Mapping[str, Setting], given: Settings, *, fill: bool = True) -> Settings:
    """Return the given settings, with the defaults of the others before them.  fill: add these at all.

    Lists, as YAML has them, so that a recipe that is written and read again is equal.
    """
    defaults = {
        key: setting.default
        for key, setting in fields.items()
        if setting.default is not REQUIRED and not isinstance(setting.default, Source)
    }
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in (defaults | given if fill else given).items()
    }


def _problem(owner: str, fields: Mapping[str, Setting], prefix: str, detail: Any) -> tuple[str, str]:
    """Return one pydantic error as (dotted key, what is wrong)."""
    name = str(detail["loc"][0])
    key = f"{prefix}.{name}"
    if detail["type"] == "extra_forbidden":
        close = ", ".join(nearest(name, fields, 2))
        return key, f"is no setting of {owner}" + (f"; nearest: {close}" if close else "")
    setting = fields[name]
    if detail["type"] == "missing":
        return key, f"is missing ({setting.help})"
    return key, f"= {detail['input']!r:.60} is not {setting.type} ({setting.help})"
