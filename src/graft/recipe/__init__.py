"""Recipes: read from YAML, changed by `key=value`, checked whole, written back.

Every key has a default (`tree`). Unknown keys, wrong values and contradictions are collected and reported together,
with lines and nearest names; nothing here imports torch, so an error costs a fraction of a second.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from graft.errors import UsageError, nearest
from graft.recipe.methods import refused, resolved
from graft.recipe.stages import stage_cards
from graft.recipe.text import read_text
from graft.recipe.tree import Data, Evaluate, Fresh, NewTokenizer, Recipe, Train, explain
from graft.recipe.words import SYNONYMS, canonical

__all__ = ["Data", "Evaluate", "Fresh", "NewTokenizer", "Recipe", "Train", "explain", "read"]


def read(
    source: str | Path | dict[str, Any] | Recipe,
    overrides: Iterable[str] = (),
    notices: list[str] | None = None,
) -> Recipe:
    """A recipe from a YAML file, a run's folder, a dict of settings or a Recipe, changed by `key=value` words.

    notices: receives how words of other trainers and presets were understood.
    Raises UsageError that lists every unknown key, wrong value and contradiction at once.
    """
    overrides = list(overrides)
    if isinstance(source, Recipe):
        if not overrides:
            return source
        source = source.model_dump()
    if isinstance(source, dict):
        raw, where, lines = source, "the recipe", {}
    else:
        path = Path(source) / "recipe.yaml" if Path(source).is_dir() else Path(source)
        text = read_text(path)
        raw, where, lines = text.settings, str(path), text.lines
        if Path(source).is_dir():
            raw["output"] = str(source)  # a run's folder is where it lies now
        raw.setdefault("output", f"runs/{path.stem}")
    heard: list[str] = [] if notices is None else notices
    raw, problems = canonical(raw, overrides, heard)
    problems |= resolved(raw, heard)
    card = stage_cards().get(raw.get("stage", "sft"))
    if card is not None and isinstance(raw.setdefault("evaluate", {}), dict):
        raw["evaluate"].setdefault("metrics", list(card.metrics))
    try:
        recipe = Recipe.model_validate(raw)
        problems |= _contradictions(recipe)
    except ValidationError as error:
        problems |= dict(_problem(raw, detail) for detail in reversed(error.errors(include_url=False)))
    if problems:
        raise _refusal(where, problems, lines)
    return recipe


def _problem(raw: dict[str, Any], detail: Any) -> tuple[str, str]:
    """One pydantic error as (dotted key, what is wrong)."""
    given, path = raw, []
    for part in detail["loc"]:
        # Other parts name a branch of a union, which the reader did not write.
        inside = (
            part in given
            if isinstance(given, dict)
            else isinstance(given, list) and isinstance(part, int) and part < len(given)
        )
        if inside:
            given = given[part]
        if inside or (detail["type"] == "missing" and part == detail["loc"][-1]):
            path.append(str(part))
    key = ".".join(path)
    if detail["type"] == "extra_forbidden":
        return key, f"is no key; nearest: {', '.join(_nearest(key))}"
    if detail["type"] == "missing":
        return key, "is missing"
    message = detail["msg"].removeprefix("Input ").removeprefix("Value error, ")
    shown = repr(given) if len(repr(given)) <= 40 else type(given).__name__
    return key, f"= {shown} {message}"


def _nearest(key: str) -> list[str]:
    """Canonical keys that look like `key`: by their last part, or by a word of another trainer."""
    leaves = dict(SYNONYMS)
    for known in [*explain(), "data", "train", "evaluate"]:
        leaves[known.rpartition(".")[2]] = known
    section, _, leaf = key.rpartition(".")
    siblings = [word for word, target in leaves.items() if section and target.startswith(f"{section}.")]
    found = nearest(leaf, siblings or leaves, 2) if section else nearest(leaf, leaves, 2)
    return list(dict.fromkeys(leaves[word] for word in found))


def _contradictions(recipe: Recipe) -> dict[str, str]:
    """Pairs of settings that cannot both be meant."""
    train, found = recipe.train, {}
    stages = stage_cards()
    if recipe.stage not in stages:
        near = ", ".join(nearest(recipe.stage, stages, 2))
        found["stage"] = f"= {recipe.stage!r} is no stage; nearest: {near}"
    elif recipe.objective not in stages[recipe.stage].objectives:
        known = " or ".join(stages[recipe.stage].objectives)
        found["objective"] = f"= {recipe.objective}: stage {recipe.stage} knows {known}"
    if recipe.fresh and recipe.quant != "none":
        found["quant"] = (
            f"= {recipe.quant} stores pretrained weights; a fresh model is trained whole, with quant: none"
        )
    if recipe.group_size and recipe.quant in ("none", "int8"):
        found["group_size"] = f"= {recipe.group_size} has no effect with quant = {recipe.quant}; choose int4"
    if recipe.fresh and [method["name"] for method in recipe.methods] != ["full"]:
        found["method"] = "must be full for a fresh model: beside random weights nothing can be learnt"
    if train.batch_size % train.micro_batch_size:
        found["train.micro_batch_size"] = (
            f"= {train.micro_batch_size} does not divide train.batch_size = {train.batch_size}"
        )
    if train.paged_budget_mb and not train.optimizer.startswith("paged"):
        found["train.paged_budget_mb"] = (
            f"has no effect with train.optimizer = {train.optimizer}; choose paged_{train.optimizer}"
        )
    if train.patience and not recipe.data.eval:
        found["train.patience"] = "needs held-out rows: set data.eval"
    return found | refused(recipe.methods, recipe.quant)


def _refusal(where: str, problems: dict[str, str], lines: dict[str, int]) -> UsageError:
    keys = sorted(problems, key=lambda key: lines.get(key, 10**9))
    rows = [f"line {lines[key]}: {key}" if key in lines else key for key in keys]
    width = max(map(len, rows))
    listed = "\n".join(f"  {row:<{width}}  {problems[key]}" for row, key in zip(rows, keys, strict=True))
    count = "1 setting" if len(problems) == 1 else f"{len(problems)} settings"
    return UsageError(
        f"{where} has {count} that cannot be used\n{listed}",
        "known keys with values of their kind",
        "correct what is listed; `graft train --keys` shows every key with its help",
    )
