"""Recipes as text: YAML in with the line of every key, YAML out with the help behind every key."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from graft.errors import UsageError


class _Loader(yaml.SafeLoader):
    """YAML 1.1 without its surprise that 1e-4 is a word: here it is a number, as in YAML 1.2 and JSON."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


@dataclass(frozen=True)
class RecipeText:
    """settings: the file as nested dicts.  lines: the line (from 1) of every dotted key."""

    settings: dict[str, Any]
    lines: dict[str, int]


def read_text(path: Path) -> RecipeText:
    """A recipe file as settings and lines. Raises UsageError where it cannot be read, is no YAML, or repeats a key."""
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=_Loader)
        settings = {} if node is None else value(text)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(
            f"{path} cannot be read: {reason}",
            "a recipe file in YAML, or a run's folder",
            "check the path; recipes/ holds examples",
        ) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        where = getattr(error, "problem_mark", None)
        line = f"{path}:{where.line + 1}" if where else str(path)
        problem = getattr(error, "problem", None) or str(error)
        raise UsageError(
            f"{line} is no YAML: {problem}", "`key: value` lines with even indentation", "correct that line"
        ) from error
    if not isinstance(settings, dict):
        raise UsageError(
            f"{path} holds {type(settings).__name__}, not settings",
            "`key: value` lines",
            "see recipes/ for examples",
        )
    lines: dict[str, int] = {}
    for key, line in _walk(node, "", set()) if node is not None else ():
        if key in lines:
            raise UsageError(
                f"{path}:{line} sets {key} again",
                f"one value ({key} is also on line {lines[key]})",
                "remove one",
            )
        lines[key] = line
    return RecipeText(settings, lines)


def value(text: str) -> Any:
    """One YAML value: `1e-4` is a number, `[a, b]` a list, anything else a word. Raises yaml.YAMLError."""
    return yaml.load(text, Loader=_Loader)  # a SafeLoader: plain values only


def emit(settings: dict[str, Any], help: dict[str, str]) -> str:
    """Settings as YAML, one key a line with its help behind it; inner structures in one line."""
    lines = []
    for key, inner in settings.items():
        if isinstance(inner, dict) and any(known.startswith(f"{key}.") for known in help):
            lines.append(f"{key}:")
            lines += [
                _line(f"  {name}", entry, help.get(f"{key}.{name}", "")) for name, entry in inner.items()
            ]
        else:
            lines.append(_line(key, inner, help.get(key, "")))
    return "\n".join(lines) + "\n"


def _line(key: str, entry: Any, help: str) -> str:
    left = f"{key}: {_text(entry)}"
    return f"{left:<48} # {help}" if help else left


def _text(entry: Any) -> str:
    """One value in one line, such that every YAML reader reads it back."""
    if isinstance(entry, dict):
        return "{" + ", ".join(f"{_text(key)}: {_text(inner)}" for key, inner in entry.items()) + "}"
    if isinstance(entry, list | tuple):
        return "[" + ", ".join(map(_text, entry)) + "]"
    if isinstance(entry, str) and not (
        re.fullmatch(r"[A-Za-z/][\w./-]*", entry, re.ASCII) and value(entry) == entry
    ):
        return yaml.safe_dump(entry, default_style='"', width=10**9).strip()
    return yaml.safe_dump(entry, width=10**9).removesuffix("\n").removesuffix("\n...")


def _walk(node: yaml.Node, prefix: str, seen: set[int]) -> Iterator[tuple[str, int]]:
    if isinstance(node, yaml.MappingNode) and id(node) not in seen:
        seen.add(id(node))
        for key, inner in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                yield f"{prefix}{key.value}", key.start_mark.line + 1
                yield from _walk(inner, f"{prefix}{key.value}.", seen)
