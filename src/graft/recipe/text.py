"""Recipes as text: read YAML with the line of every key, write YAML with the help of every key."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from graft.errors import UsageError


class _Loader(yaml.SafeLoader):
    """YAML 1.1, but 1e-4 is a number, as in YAML 1.2 and JSON, and not a word."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


@dataclass(frozen=True)
class RecipeText:
    """A recipe file.  settings: as nested dicts.  lines: the line (from 1) of every dotted key."""

    settings: dict[str, Any]
    lines: dict[str, int]


def read_text(path: Path) -> RecipeText:
    """Read a recipe file. Raises UsageError if it cannot be read, is no YAML, or repeats a key."""
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
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or str(error)
        raise UsageError(
            f"{place} is not valid YAML: {problem}",
            "`key: value` lines with even indentation",
            "correct that line",
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
    """Return one YAML value: `1e-4` is a number, `[a, b]` a list, `abc` a text. Raises yaml.YAMLError."""
    return yaml.load(text, Loader=_Loader)  # a SafeLoader: plain values only


def emit(settings: dict[str, Any], help: dict[str, str]) -> str:
    """Write settings as YAML, one key per line, its help as a comment; a value fits into its line."""
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
    setting = f"{key}: {inline(entry)}"
    return f"{setting:<48} # {help}" if help else setting


def inline(entry: Any) -> str:
    """Write one value in one line that every YAML reader reads back equally."""
    if isinstance(entry, dict):
        return "{" + ", ".join(f"{inline(key)}: {inline(inner)}" for key, inner in entry.items()) + "}"
    if isinstance(entry, list | tuple):
        return "[" + ", ".join(map(inline, entry)) + "]"
    if isinstance(entry, str) and not _is_plain(entry):
        return yaml.safe_dump(entry, default_style='"', width=10**9).strip()
    return yaml.safe_dump(entry, width=10**9).removesuffix("\n").removesuffix("\n...")


def _is_plain(text: str) -> bool:
    """Return whether YAML reads a text without quotes as itself: not as a number, true, null, ..."""
    return re.fullmatch(r"[A-Za-z/][\w./-]*", text, re.ASCII) is not None and value(text) == text


def _walk(node: yaml.Node, prefix: str, seen: set[int]) -> Iterator[tuple[str, int]]:
    """Yield every dotted key below a node with its line.

    seen: ids of the nodes passed so far, because an alias may point back to one of them.
    """
    if isinstance(node, yaml.MappingNode) and id(node) not in seen:
        seen.add(id(node))
        for key, inner in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                yield f"{prefix}{key.value}", key.start_mark.line + 1
                yield from _walk(inner, f"{prefix}{key.value}.", seen)
    elif isinstance(node, yaml.SequenceNode) and id(node) not in seen:
        seen.add(id(node))
        for index, inner in enumerate(node.value):
            yield f"{prefix}{index}", inner.start_mark.line + 1
            yield from _walk(inner, f"{prefix}{index}.", seen)
