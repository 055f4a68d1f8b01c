"""Read what a stage's file declares as text, so that recipes and row checks know the stages without torch.

In a recipe a stage is a name, or a name with settings of its own: the fields of its class, each with its
comment as help. An objective that one stage has and no stage is called like is a word for that stage: `dpo`
is `{name: preference, objective: dpo}`.
"""

import ast
import functools
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graft.core.cards import Setting
from graft.core.cards import settings as fields_of
from graft.errors import nearest, one_of
from graft.recipe.settings import Settings, filled, problems_of

DECLARED = ("layouts", "objectives", "metrics", "labelled", "counts", "headed", "takes_functions")


@dataclass(frozen=True)
class StageCard:
    """One stage: its file and class, the first sentence of its docstring, and what its class declares.

    settings: the fields of its class but `objective`, which every stage has.
    """

    name: str
    cls: str
    title: str
    layouts: tuple[str, ...] = ()
    objectives: tuple[str, ...] = ("causal",)
    metrics: tuple[str, ...] = ("loss",)
    labelled: bool = False
    counts: str = "tok"
    headed: bool = False
    takes_functions: bool = False
    settings: Mapping[str, Setting] = field(default_factory=dict)


def stage_cards() -> dict[str, StageCard]:
    """Return every stage by name, sorted.

    They are the files of graft/stages whose last class derives from Stage and reads some layout of rows.
    """
    spec = importlib.util.find_spec("graft.stages")
    folders = (spec.submodule_search_locations or []) if spec else []
    files = [path for folder in folders for path in Path(folder).glob("*.py")]
    places = {path.stem: path for path in files}
    trees = {name: _parsed(path, path.stat().st_mtime_ns) for name, path in places.items()}
    classes = {c.name: c for tree in trees.values() for c in tree.body if isinstance(c, ast.ClassDef)}
    homes = {c.name: places[n] for n, tree in trees.items() for c in tree.body if isinstance(c, ast.ClassDef)}
    cards = {}
    for name, tree in sorted(trees.items()):
        stages = [c for c in tree.body if isinstance(c, ast.ClassDef) and "Stage" in _lineage(c, classes)]
        if stages:
            title = (ast.get_docstring(tree) or name).split("\n\n")[0].replace("\n", " ")
            declared = _declared(stages[-1], classes)
            if not declared.get("layouts"):
                continue  # what several stages have in common
            own = _settings(stages[-1], homes, classes)
            cards[name] = StageCard(name, stages[-1].name, title.rstrip("."), **declared, settings=own)
    return cards


@functools.lru_cache(maxsize=64)
def _parsed(path: Path, changed: int) -> ast.Module:
    """Return a file's syntax tree.  changed: when the file was changed; another time parses it again."""
    return ast.parse(path.read_bytes())


def stage_card(name: str) -> StageCard:
    """Return the card of one stage. Raises UsageError with the nearest name."""
    known = stage_cards()
    return known[one_of("stage", name, known)]


def names_function(objective: Any) -> bool:
    """Return whether an objective is the path of a function, such as losses.py:smoothed, and no word."""
    return isinstance(objective, str) and ":" in objective


def resolve_stage(raw: Settings, notices: list[str]) -> dict[str, str]:
    """Bring `stage` and `objective` of a recipe into one form in place; return the problems by key.

    The stage becomes its name, or {name, all settings} if it has settings of its own. Its objective stands at
    `objective`, by default the first that it has. The path of a function may stand there instead; then the
    stage's own is at `stage.objective`, where it is not the first.
    notices: a list to which is added what a word means.
    """
    known = stage_cards()
    given = raw.pop("stage", "sft")
    entry = dict(given) if isinstance(given, dict) else {"name": given}
    entry = {"name": "sft"} | entry  # a setting alone is about the usual stage
    name, own = entry.pop("name"), entry.pop("objective", None)
    if not isinstance(name, str):
        return {"stage": f"= {name!r:.60} is not the name of a stage; `graft train --help` lists them"}
    function = next((value for value in (own, raw.get("objective")) if names_function(value)), None)
    own = None if own is function else own
    if function is not None and names_function(raw.get("objective")):
        del raw["objective"]
    owners = [card.name for card in known.values() if name in card.objectives]
    if name not in known and len(owners) == 1:
        problems = _set_objective(raw, name, f"stage {name}")
        notices.append(f"stage {name} is stage {owners[0]} with objective {name}")
        name = owners[0]
    elif name not in known:
        words = [*known, *(word for card in known.values() for word in card.objectives)]
        return {"stage": f"= {name!r} is an unknown stage; nearest: {', '.join(nearest(name, words, 2))}"}
    else:
        problems = {}
    card = known[name]
    if own is not None:
        problems |= _set_objective(raw, own, "stage.objective")
    raw.setdefault("objective", card.objectives[0])
    if raw["objective"] not in card.objectives:
        key = "stage.objective" if own is not None else "objective"
        problems[key] = f"= {raw['objective']}: stage {name} has {' or '.join(card.objectives)}"
    problems |= problems_of(f"stage {name}", card.settings, entry, "stage")
    if not problems:
        raw["stage"] = {"name": name} | filled(card.settings, entry) if card.settings else name
    if function is not None:
        problems |= _set_function(raw, card, function)
    return problems


def _set_objective(raw: Settings, objective: Any, written: str) -> dict[str, str]:
    """Set the objective of a recipe, unless it has another one: then return the contradiction."""
    if raw.setdefault("objective", objective) != objective:
        return {"objective": f"= {raw['objective']} contradicts {written}: {objective}"}
    return {}


def _set_function(raw: Settings, card: StageCard, function: str) -> dict[str, str]:
    """Put the path of a function in the place of a stage's own objective, which says how rows are read."""
    own = raw["objective"]
    raw["objective"] = function
    if not card.takes_functions:
        names = [other.name for other in stage_cards().values() if other.takes_functions]
        known = " or ".join(card.objectives)
        return {
            "objective": f"= {function}: stage {card.name} has {known}; functions are for {', '.join(names)}"
        }
    if own != card.objectives[0] and "stage" in raw:
        stage = raw["stage"] if isinstance(raw["stage"], dict) else {"name": raw["stage"]}
        raw["stage"] = stage | {"objective": own}
    return {}


def stage_help(name: str) -> dict[str, str]:
    """Return every dotted key of one stage with its line of help; none for a stage without settings."""
    card = stage_cards().get(name)
    if card is None or not card.settings:
        return {}
    help_by_key = {f"stage.{key}": setting.help for key, setting in card.settings.items()}
    return {"stage.name": "`graft train --help` lists the stages"} | help_by_key


def _settings(
    cls: ast.ClassDef, homes: Mapping[str, Path], classes: dict[str, ast.ClassDef]
) -> dict[str, Setting]:
    """Return the fields of a stage's class, and of those above it, but the objective.  homes: their files."""
    above = [name for name in reversed(_lineage(cls, classes)) if name in homes and name != "Stage"]
    own: dict[str, Setting] = {}
    for name in [*above, cls.name]:
        own |= fields_of(homes[name], name)
    return {key: setting for key, setting in own.items() if key != "objective"}


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
