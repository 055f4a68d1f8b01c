"""Read the settings of a recipe with several stages: share, hand on, check; and find each thing's line.

The rules are in `graft.recipe.chain`.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graft.errors import nearest
from graft.recipe import Recipe, checked
from graft.recipe.settings import Settings
from graft.recipe.stages import stage_cards
from graft.recipe.words import SYNONYMS, canonical, merged

ONE_STAGE = ("stage", "objective", "adapter")  # keys that belong to one stage and cannot be shared
NAME = re.compile(r"\w[\w-]*")
REWARD = "reward"  # the stage whose adapters give rewards
REWARDS = "rewards"  # the setting of the stages that need some
ADAPTERS = (REWARDS, "judge")  # settings of a stage that may name adapters


@dataclass
class _Stage:
    """One stage while a chain is read.

    own: its own settings, with our keys.  settings: with the shared ones.  recipe: None if they are wrong.
    """

    name: str
    own: Settings
    recipe: Recipe | None = None
    settings: Settings = field(default_factory=dict)

    @property
    def stage(self) -> str:
        """The word that names the stage."""
        given = self.own.get("stage")
        return str(given.get("name") if isinstance(given, dict) else given)

    @property
    def writes(self) -> bool:
        """Whether a model with its adapter writes text."""
        return self.recipe is not None and not stage_cards()[self.recipe.stage_name].headed


class Reader:
    """Reads the settings of a chain; `problems` collects what is wrong, by key.

    shared: the settings of all stages.  recipes: of the stages by name.
    adapters, models: of a stage, the earlier one whose adapter it goes on from, or whose model it takes.
    """

    def __init__(self, settings: Settings, usual: str, notices: list[str]) -> None:
        self.given = dict(settings)
        self.usual = usual
        self.notices = notices
        self.problems: dict[str, str] = {}
        self.places: dict[str, str] = {}  # of each stage: the key of its entry in the file
        self.shared: Settings = {}
        self.stages: list[_Stage] = []
        self.recipes: dict[str, Recipe] = {}
        self.adapters: dict[str, str] = {}
        self.models: dict[str, str] = {}

    def read(self, overrides: list[str]) -> None:
        """Read all stages, changed by `key=value` and `NAME.key=value` words."""
        entries = self._entries(self.given.pop("stages"))
        names = [name for name, _ in entries]
        words = {name: [w.partition(".")[2] for w in overrides if w.startswith(f"{name}.")] for name in names}
        common = [word for word in overrides if word.partition(".")[0] not in words]
        self.shared, wrong = canonical(self.given, common, self.notices)
        self.problems |= wrong
        for name, entry in entries:
            own, wrong = canonical(entry, words[name], self.notices)
            self.problems |= {f"{name}.{key}": text for key, text in wrong.items()}
            self.stages.append(_Stage(name, own))
        self._check_shared(common)
        self.shared.setdefault("output", self.usual)
        for at, stage in enumerate(self.stages):
            self._hand_on(stage, self.stages[:at])
            self._settle(stage, self.stages[:at])
        self.notices[:] = dict.fromkeys(self.notices)

    def located(self, lines: Mapping[str, int]) -> dict[str, int]:
        """Return the line of every key as `problems` names it: NAME.key for stages.INDEX.key."""
        found = dict(lines)
        for name, place in self.places.items():
            if place in lines:
                found[f"{name}.stage"] = found[name] = lines[place]
            inside = {key: line for key, line in lines.items() if key.startswith(f"{place}.")}
            found |= {f"{name}.{key.removeprefix(f'{place}.')}": line for key, line in inside.items()}
        return found

    def _entries(self, given: Any) -> list[tuple[str, Settings]]:
        """Return (name, own settings) of every entry of the list `stages` that is one."""
        if not isinstance(given, list) or not given:
            self.problems["stages"] = "is not a list of stages; write for example [sft, reward, ppo]"
            return []
        entries: list[tuple[str, Settings]] = []
        for index, item in enumerate(given):
            entry = {"stage": item} if isinstance(item, str) else item
            name = _name_of(entry)
            if name is None:
                self.problems[f"stages.{index}"] = "has no name; write {name: sft, stage: sft, ...}"
                continue
            own = {key: value for key, value in entry.items() if key != "name"}
            if trouble := _trouble(name, own):
                self.problems[f"stages.{index}"] = trouble
                continue
            self.places[name] = f"stages.{index}"
            entries.append((name, {"stage": name, **own}))
        for name, count in Counter(name for name, _ in entries).items():
            if count > 1:
                self.problems["stages"] = f"has {count} stages called {name}; give each a name of its own"
        return entries if len({name for name, _ in entries}) == len(entries) else []

    def _check_shared(self, words: list[str]) -> None:
        """Note shared keys that are unknown, belong to one stage, or are changed without any effect."""
        shared, stages = self.shared, self.stages
        names = [stage.name for stage in stages]
        for key in [key for key in shared if key not in Recipe.model_fields]:
            close = ", ".join(nearest(key, [*names, *Recipe.model_fields, *SYNONYMS], 2))
            self.problems[key] = f"is neither a key nor a stage; nearest: {close}"
            del shared[key]
        for key in [key for key in ONE_STAGE if key in shared]:
            example = f"{names[-1]}.{key}" if names else key
            self.problems[key] = f"belongs to one stage; write it there, for example {example}"
            del shared[key]
        changed, _ = canonical({}, [word for word in words if "=" in word], [])
        for key in _leaves(changed):
            own = [stage.name for stage in stages if _has(stage.own, key)]
            if own and len(own) == len(stages):
                self.problems[key] = (
                    f"is every stage's own here; change it there, for example {own[-1]}.{key}"
                )
            elif own:
                self.notices.append(f"{key} of {' and '.join(own)} is their own, and stays as it is")

    def _hand_on(self, stage: _Stage, earlier: list[_Stage]) -> None:
        """Complete a stage by the names of the earlier ones that hand something on to it."""
        if "adapter" not in stage.own:
            source = next((s for s in reversed(earlier) if s.writes and not _fresh(s)), None)
            if source is not None:
                stage.own["adapter"] = source.name
                self.notices.append(f"stage {stage.name} goes on from the adapter of stage {source.name}")
        card = stage_cards().get(stage.stage)
        given = stage.own["stage"]
        if card is None or REWARDS not in card.settings or (isinstance(given, dict) and given.get(REWARDS)):
            return
        judges = [s for s in earlier if s.recipe is not None and s.recipe.stage_name == REWARD]
        if judges:
            settings = given if isinstance(given, dict) else {"name": given}
            stage.own["stage"] = settings | {REWARDS: judges[-1].name}
            self.notices.append(f"stage {stage.name} takes its rewards from stage {judges[-1].name}")

    def _settle(self, stage: _Stage, earlier: list[_Stage]) -> None:
        """Read the recipe of a stage, with the folders of earlier stages for their names."""
        output = str(self.shared["output"])
        settings = merged(self.shared, stage.own)
        settings["output"] = f"{output}/{stage.name}"
        known = {each.name: each for each in earlier}
        source = known.get(str(settings.get("adapter")))
        if source is not None:
            self.adapters[stage.name] = source.name
            if "method" not in stage.own:  # the method is as it was written there, if it was
                settings.pop("method", None)
                settings |= {key: source.settings[key] for key in source.settings.keys() & {"method"}}
        started = [each for each in earlier if _fresh(each)]
        model = next((s for s in started if s.settings.get("model") == settings.get("model")), None)
        if model is not None:
            self.models[stage.name] = model.name
        self._place(stage, settings, known, output)
        stage.settings = dict(settings)
        if model is not None:
            settings["model"] = f"{output}/{model.name}/model"
            self.notices.append(f"stage {stage.name} takes the model that stage {model.name} has trained")
        stage.recipe, problems = checked(settings, (), self.notices, {})
        if stage.recipe is not None:
            self.recipes[stage.name] = stage.recipe
        if stage.recipe is not None and source is not None and source.recipe is not None:
            problems |= _other_method(stage, source)
        self.problems |= {self._label(stage, key): text for key, text in problems.items()}

    def _place(self, stage: _Stage, settings: Settings, known: Mapping[str, _Stage], output: str) -> None:
        """Replace the names of earlier stages by the folders of their adapters."""

        def folder_of(name: Any, key: str) -> Any:
            if not isinstance(name, str) or name in known:
                return f"{output}/{name}/adapter" if isinstance(name, str) else name
            if not Path(name).exists() and not (key != "adapter" and ":" in name):
                later = name in self.places
                reason = "this stage or a later one" if later else "neither an earlier stage nor a folder"
                close = ", ".join(nearest(name, known, 2)) or "there is none"
                self.problems[f"{stage.name}.{key}"] = f"= {name} is {reason}; earlier stages: {close}"
            return name

        def placed(named: Any, setting: str) -> Any:
            key = f"stage.{setting}"
            if isinstance(named, dict):
                return {folder_of(name, key): weight for name, weight in named.items()}
            return [folder_of(n, key) for n in named] if isinstance(named, list) else folder_of(named, key)

        if settings.get("adapter") is not None:
            settings["adapter"] = folder_of(settings["adapter"], "adapter")
        given = settings.get("stage")
        if isinstance(given, dict):
            settings["stage"] = {**given, **{k: placed(given[k], k) for k in ADAPTERS if given.get(k)}}

    def _label(self, stage: _Stage, key: str) -> str:
        """Return a key as the user wrote it: with the stage's name, unless its value is the shared one."""
        return key if _has(self.shared, key) and not _has(stage.own, key) else f"{stage.name}.{key}"


def _name_of(entry: Any) -> str | None:
    """Return the name of an entry: its own, or its stage's; None if it has neither."""
    if not isinstance(entry, dict):
        return None
    stage = entry.get("stage")
    name = entry.get("name", stage.get("name") if isinstance(stage, dict) else stage)
    return name if isinstance(name, str) else None


def _trouble(name: str, own: Settings) -> str:
    """Return why an entry cannot be a stage of a chain; "" if it can."""
    if not NAME.fullmatch(name) or name in Recipe.model_fields or name in SYNONYMS:
        return f"cannot be called {name}: a name is letters, digits, _ and -, and no key of a recipe"
    if "output" in own or "output_dir" in own:
        return f"has an output of its own; its folder is {name} in the output of all"
    return ""


def _fresh(stage: _Stage) -> bool:
    """Return whether a stage trains a model that starts from random weights."""
    return stage.recipe is not None and stage.recipe.fresh


def _other_method(stage: _Stage, source: _Stage) -> dict[str, str]:
    """Return by key which settings of a method differ from those of the adapter that a stage goes on from."""
    assert stage.recipe is not None and source.recipe is not None
    before = {method["name"]: method for method in source.recipe.methods}
    remedy = "leave it out, or set adapter: null to train a new one"
    problems: dict[str, str] = {}
    if not before:  # it goes on from a saved adapter, whose methods its files tell
        return problems
    for method in stage.recipe.methods:
        own = before.get(method["name"])
        if own is None:
            has = " + ".join(before)
            problems["method"] = f"= {method['name']}, but the adapter of {source.name} is {has}: {remedy}"
            continue
        for key, value in method.items():
            if key in own and own[key] != value:
                problems[f"method.{key}"] = (
                    f"= {value}, but the adapter of {source.name} has {own[key]}: {remedy}"
                )
    return problems


def _leaves(settings: Settings, prefix: str = "") -> Iterator[str]:
    """Yield the dotted key of every value."""
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _has(settings: Settings, key: str) -> bool:
    """Return whether settings have a value at a dotted key, or at a group above it that is no group."""
    group: Any = settings
    for part in key.split("."):
        if not isinstance(group, dict) or part not in group:
            return False
        group = group[part]
        if not isinstance(group, dict):
            return True
    return True
