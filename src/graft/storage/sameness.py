"""Compare what a folder was made from with what is here now: the identity of a run, key by key."""

import json
from collections.abc import Mapping
from typing import Any

from graft.storage.writes import encode

# Keys that begin so say where something lay: they are named with what differs, and may differ alone.
PATH = "path of "
DATA = ("rows", "the classes", "the template")


def is_same_run(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Return whether two identities are those of one run."""
    return all(key.startswith(PATH) for key in _changed(before, _stored(now)))


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return the keys whose values differ, as "key: before -> now; ..."; "" if there are none."""
    now = _stored(now)
    return "; ".join(f"{key}: {_short(before[key])} -> {_short(now[key])}" for key in _changed(before, now))


def kinds(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return in words what kinds of things differ between two identities."""
    keys = [key for key in _changed(before, _stored(now)) if not key.startswith(PATH)]
    of_data = [key for key in keys if key.endswith(DATA)]
    of_base = [key for key in keys if key.endswith("the base")]
    kinds = {
        "different settings": len(keys) > len(of_data) + len(of_base),
        "a different base": of_base,
        "different data": of_data,
    }
    return " and ".join(kind for kind, differs in kinds.items() if differs)


def _stored(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values as JSON holds them: it has no tuples."""
    return dict(json.loads(encode(dict(values))))


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the keys whose values differ.

    A key that only one side has was unknown to the Graft that wrote the other.
    """
    return [key for key in sorted({*before} & {*now}) if before[key] != now[key]]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
