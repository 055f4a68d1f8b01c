"""Read what a stage's file declares as text, so that recipes and row checks know the stages without torch."""

import ast
import functools
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graft.errors import one_of

DECLARED = ("layouts", "objectives", "metrics", "labelled")


@dataclass(frozen=True)
class StageCard:
    """One stage: its file and class, the first sentence of its docstring, and what its class declares."""

    name: str
    cls: str
    title: str
    layouts: tuple[str, ...] = ()
    objectives: tuple[str, ...] = ("causal",)
    metrics: tuple[str, ...] = ("loss",)
    labelled: bool = False


def stage_cards() -> dict[str, StageCard]:
    """Return every stage by name, sorted: the files of graft/stages whose last class derives from Stage."""
    spec = importlib.util.find_spec("graft.stages")
    folders = (spec.submodule_search_locations or []) if spec else []
    files = [path for folder in folders for path in Path(folder).glob("*.py")]
    trees = {path.stem: _parsed(path, path.stat().st_mtime_ns) for path in files}
    classes = {c.name: c for tree in trees.values() for c in tree.body if isinstance(c, ast.ClassDef)}
    cards = {}
    for name, tree in sorted(trees.items()):
        stages = [c for c in tree.body if isinstance(c, ast.ClassDef) and "Stage" in _lineage(c, classes)]
        if stages:
            title = (ast.get_docstring(tree) or name).split("\n\n")[0].replace("\n", " ")
            declared = _declared(stages[-1], classes)
            cards[name] = StageCard(name, stages[-1].name, title.rstrip("."), **declared)
    return cards


@functools.lru_cache(maxsize=64)
def _parsed(path: Path, changed: int) -> ast.Module:
    """Return a file's syntax tree.  changed: when the file was changed; another time parses it again."""
    return ast.parse(path.read_bytes())


def stage_card(name: str) -> StageCard:
    """Return the card of one stage. Raises UsageError with the nearest name."""
    known = stage_cards()
    return known[one_of("stage", name, known)]


def _lineage(cls: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> list[str]:
    """Return the names of all classes that a class derives from, the nearest first."""
    bases = [base.id for base in cls.bases if isinstance(base, ast.Name)]
    return bases + [name for base in bases if base in classes for name in _lineage(classes[base], classes)]


def _declared(cls: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> dict[str, Any]:
    """Return the values of DECLARED that a class assigns or inherits, with an annotation or without."""
    values: dict[str, Any] = {}
    lineage = [classes[name] for name in _lineage(cls, classes) if name in classes and name != "Stage"]
    bodies = [above.body for above in reversed(lineage)] + [cls.body]
    for node in (node for body in bodies for node in body):
        if isinstance(node, ast.Assign):
            target = node.targets[0]
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            target = node.target
        else:
            continue
        if isinstance(target, ast.Name) and target.id in DECLARED:
            values[target.id] = ast.literal_eval(node.value)  # type: ignore[arg-type]
    return values
