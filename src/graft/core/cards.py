"""Read a method's settings and help from its source, without importing torch.

A method is a file of graft/methods with one frozen dataclass that derives from Method. From it a card is
made:

    module docstring                      the card's text: equation, paper, differences
    r: int = 8  # help                 a setting; its help is the comment after it, or the lines above it
    mergeable: ClassVar = No("why")    a declaration

A class that derives from another method's class inherits its settings, and every method has those of Method.
"""

import ast
import functools
import importlib.util
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from graft.core.schema import in_words, type_of
from graft.errors import UsageError, one_of

# What a method may declare that it cannot do, each with a reason.
ABILITIES = ("newborn", "mergeable", "routable", "quantisable", "packable", "cacheable")
TITLES = {"newborn": "starts as a no-op"}  # what people read, where that is another word
NOT = {"newborn": "does not start as a no-op"}
REQUIRED = object()  # the default of a field that has none


class Source(str):
    """The source text of a default that is no literal."""


class Refusal(str):
    """The reason why a method declares that it cannot do something.  unless: settings with which it can."""

    unless: Mapping[str, Any] = {}

    @property
    def answer(self) -> str:
        """ "no", or the settings with which it is possible: "with host=lora"."""
        shown = ", ".join(f"{key}={value}" for key, value in self.unless.items())
        return f"with {shown}" if shown else "no"


@dataclass(frozen=True)
class Setting:
    """One field of a config class: its annotation as written, its default value and its line of help."""

    name: str
    type: str
    default: Any
    help: str

    @property
    def words(self) -> str:
        """The type with its range, as pages and messages show it."""
        return in_words(type_of(self.type))


@dataclass(frozen=True)
class Card:
    """What the file of one method says.

    name: of the file.  cls: name of the class.  doc: the module docstring.  declared: the class attributes.
    """

    name: str
    cls: str
    doc: str
    settings: dict[str, Setting]
    declared: dict[str, Any] = field(default_factory=dict)
    path: Path = Path()

    def exceptions(self) -> dict[str, Refusal]:
        """Return {ability: reason} for everything that the method declares it cannot do."""
        return {name: self.declared[name] for name in ABILITIES if self.declared.get(name, True) is not True}

    @property
    def title(self) -> str:
        """The docstring's first sentence after the method's name, without its full stop."""
        first = self.doc.strip().split("\n\n")[0].replace("\n", " ")
        return first.partition(": ")[2].rstrip(".") or first.rstrip(".")

    @property
    def paper(self) -> str:
        """The paper as `arXiv 2106.09685`, or an empty string."""
        number = re.search(r"\b(\d{4}\.\d{5})\b", self.doc)
        return f"arXiv {number[1]}" if number else ""


def cards() -> dict[str, Card]:
    """Return every method by name, sorted.

    The folders are listed at each call, so that a new file is seen.
    """
    return dict(_cards(_files("methods"), _files("layers")))


@functools.lru_cache(maxsize=4)
def _cards(methods: "tuple[_File, ...]", layers: "tuple[_File, ...]") -> dict[str, Card]:
    """Return every method by name, sorted. The files' times of change are part of the key of the cache."""
    sources = {file.path.stem: _read(file) for file in methods}
    shared = [_read(file) for file in layers]
    classes = {cls.name: (source, cls) for source in [*shared, *sources.values()] for cls in source.classes()}
    known = {}
    for name, source in sorted(sources.items()):
        own_classes = {cls.name: (source, cls) for cls in source.classes()}
        visible = classes | own_classes  # two files may use one name
        lines = {cls: _lineage(cls, visible) for cls in own_classes}
        methods_here = {cls: line for cls, line in lines.items() if line is not None}
        if methods_here:
            cls = class_of_file(name, methods_here)
            known[name] = _card(name, source, cls, [visible[c] for c in methods_here[cls]])
    return known


def class_of_file(name: str, methods: Mapping[str, Collection[str]]) -> str:
    """Return the class that a method's file stands for: the one that no other class of the file derives from.

    methods: {class: it and the classes above it} of the method classes in the file.  Raises UsageError.

    >>> class_of_file("lets", {"Helper": ["Method", "Helper"], "LeTS": ["Method", "Helper", "LeTS"]})
    'LeTS'
    """
    leaves = [
        cls for cls in methods if not any(cls in line for other, line in methods.items() if other != cls)
    ]
    if len(leaves) != 1:
        raise UsageError(
            f"methods/{name}.py holds the methods {', '.join(leaves) or 'none'}",
            "one class that derives from Method, besides those that it derives from itself",
            "put each method into a file of its own",
        )
    return leaves[0]


class _File(NamedTuple):
    """A file and its time of change: equal for a file that was not changed."""

    path: Path
    changed: int


def _files(package: str) -> tuple[_File, ...]:
    """Return the files of a package of graft; of two with one name the last."""
    spec = importlib.util.find_spec(f"graft.{package}")
    folders = (spec.submodule_search_locations or []) if spec else []
    paths = {path.stem: path for folder in folders for path in sorted(Path(folder).glob("[!_]*.py"))}
    return tuple(_File(path, path.stat().st_mtime_ns) for path in paths.values())


def card(name: str) -> Card:
    """Return the card of one method. Raises UsageError with the nearest name."""
    known = cards()
    return known[one_of("method", name, known)]


def pages() -> dict[str, str]:
    """Return {file: text} of docs/methods: a page of Markdown per method, and a table of their abilities."""
    known = cards()
    refusals = [refusal for one in known.values() for refusal in one.exceptions().values()]
    reasons = list(dict.fromkeys(map(str, refusals)))

    def cell(one: Card, ability: str) -> str:
        refusal = one.exceptions().get(ability)
        return "yes" if refusal is None else f"{refusal.answer} [{reasons.index(str(refusal)) + 1}]"

    rows = [
        _row(f"[{name}]({name}.md)", *(cell(one, ability) for ability in ABILITIES), one.paper, one.title)
        for name, one in known.items()
    ]
    matrix = [
        "# Methods",
        "",
        "Written by `graft methods --write docs/methods` from the methods' own files.",
        "",
    ]
    titles = [TITLES.get(ability, ability) for ability in ABILITIES]
    matrix += [_row("method", *titles, "paper", "what"), _row(*["---"] * (len(ABILITIES) + 3)), *rows, ""]
    matrix += [f"{number}. {reason}" for number, reason in enumerate(reasons, 1)]
    return {f"{name}.md": _page(one) for name, one in known.items()} | {"README.md": "\n".join([*matrix, ""])}


def _page(one: Card) -> str:
    rows = [_row("setting", "type", "default", "what"), _row(*["---"] * 4)]
    for s in one.settings.values():
        rows.append(
            _row(f"`{s.name}`", f"`{s.words}`", "" if s.default is REQUIRED else f"`{s.default!r}`", s.help)
        )
    refused = [
        f"- {TITLES.get(ability, ability)} only {refusal.answer}: {refusal}"
        if refusal.unless
        else f"- {NOT.get(ability, 'not ' + ability)}: {refusal}"
        for ability, refusal in one.exceptions().items()
    ]
    lines = [f"# {one.name}", "", "```text", one.doc.strip(), "```", "", *rows, "", *refused]
    return "\n".join(lines).rstrip() + "\n"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def settings(path: Path, cls: str) -> dict[str, Setting]:
    """Return the annotated fields of one class of a Python file, with their comments as help."""
    source = _read(_File(path, path.stat().st_mtime_ns))
    return next(source.settings(node) for node in source.classes() if node.name == cls)


@functools.lru_cache(maxsize=256)
def _read(file: _File) -> "_Source":
    """Return the parsed file. A file that has changed is parsed again."""
    return _Source(file.path)


class _Source:
    """One parsed file together with its lines, in bytes as ast counts columns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        raw = path.read_bytes()
        self.tree, self.lines = ast.parse(raw), raw.splitlines()

    def comment(self, node: ast.AnnAssign) -> str:
        """Return the comment of a field: after its value, or in the lines right above it."""
        last = node.value or node.annotation
        end = (node.end_lineno or node.lineno) - 1
        rest = [self.lines[(last.end_lineno or 1) - 1][last.end_col_offset or 0 :]]
        rest += self.lines[last.end_lineno or 1 : end + 1]
        after = next((line for line in rest if b"#" in line), b"")
        if after:
            return after.split(b"#", 1)[1].decode().strip()
        above: list[str] = []
        at = node.lineno - 2
        while at >= 0 and self.lines[at].strip().startswith(b"#"):
            above.insert(0, self.lines[at].decode().strip().removeprefix("#").strip())
            at -= 1
        return " ".join(above)

    def classes(self) -> list[ast.ClassDef]:
        """Return the classes of the file."""
        return [node for node in self.tree.body if isinstance(node, ast.ClassDef)]

    def settings(self, cls: ast.ClassDef) -> dict[str, Setting]:
        """Return the fields that a class itself has, by name."""
        fields = {}
        for node in cls.body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                name, kind = node.target.id, ast.unparse(node.annotation)
                if "ClassVar" not in kind:
                    fields[name] = Setting(name, kind, _value(node.value), self.comment(node))
        return fields

    def declared(self, cls: ast.ClassDef) -> dict[str, Any]:
        """Return class attributes that are not fields: `mergeable: ClassVar = No(...)` and the like."""
        attributes = {}
        for node in cls.body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                attributes[node.targets[0].id] = _value(node.value)
            elif isinstance(node, ast.AnnAssign) and "ClassVar" in ast.unparse(node.annotation):
                attributes[ast.unparse(node.target)] = _value(node.value)
        return attributes


def _lineage(name: str, classes: dict[str, tuple[_Source, ast.ClassDef]]) -> list[str] | None:
    """Return the class and the method classes above it, oldest first; None if it is not a method."""
    if name not in classes:
        return [] if name == "Method" else None
    for base in classes[name][1].bases:
        line = _lineage(ast.unparse(base).split(".")[-1], classes)
        if line is not None:
            return [*line, name]
    return None


def _card(name: str, source: _Source, cls: str, line: list[tuple[_Source, ast.ClassDef]]) -> Card:
    fields: dict[str, Setting] = {}
    declared: dict[str, Any] = {}
    for where, node in line:
        fields |= where.settings(node)
        declared |= where.declared(node)
    fields |= settings(Path(__file__).with_name("method.py"), "Method")
    return Card(name, cls, ast.get_docstring(source.tree) or "", fields, declared, source.path)


def _value(node: ast.expr | None) -> Any:
    """Return what a default means: a literal, {} for a factory of dicts, a Refusal for `No`, its Source."""
    if node is None:
        return REQUIRED
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "No":
        refusal = Refusal(_value(node.args[0]))
        refusal.unless = {word.arg: _value(word.value) for word in node.keywords}.get("unless", {})
        return refusal
    if isinstance(node, ast.Call):
        for word in node.keywords:
            if word.arg == "default_factory":
                return {"dict": {}, "list": [], "tuple": ()}.get(
                    ast.unparse(word.value), Source(ast.unparse(word.value))
                )
            if word.arg == "default":
                return _value(word.value)
    try:
        return ast.literal_eval(node)
    except ValueError:
        return Source(ast.unparse(node))
