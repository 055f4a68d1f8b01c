"""Check the settings of a method or a stage against the fields of its class, which is read, not imported."""

from collections.abc import Mapping
from typing import Any

from graft.core.cards import REQUIRED, Setting, Source
from graft.core.schema import fits, in_words, shown, type_of
from graft.errors import nearest

Settings = dict[str, Any]


def problems_of(owner: str, fields: Mapping[str, Setting], given: Settings, prefix: str) -> dict[str, str]:
    """Return what is wrong with the given settings, by dotted key.

    owner: name of the method or stage.  fields: its settings.  prefix: of the keys.
    """
    problems = {f"{prefix}.{name}": _unknown(owner, name, fields) for name in given if name not in fields}
    for name, setting in fields.items():
        key = f"{prefix}.{name}"
        if name not in given and setting.default is REQUIRED:
            problems[key] = f"is missing ({setting.help})"
        elif name in given and not fits(given[name], kind := type_of(setting.type)):
            problems[key] = f"= {shown(given[name])} is not {in_words(kind)} ({setting.help})"
    return problems


def _unknown(owner: str, name: str, fields: Mapping[str, Setting]) -> str:
    close = ", ".join(nearest(str(name), fields, 2))
    return f"is not a setting of {owner}" + (f"; nearest: {close}" if close else "")


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
