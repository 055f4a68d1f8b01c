"""Recipes: read from YAML, changed by `key=value`, checked as a whole, written back.

Every key has a default (`tree`). Unknown keys, wrong values and contradictions are collected and reported
together, with lines and nearest names. Nothing here imports torch, so an error costs a fraction of a second.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from graft.errors import UsageError, nearest
from graft.recipe.methods import method_conflicts, resolve_methods
from graft.recipe.moved import rows_moved_with
from graft.recipe.places import find_again
from graft.recipe.stages import resolve_stage, stage_cards
from graft.recipe.text import RecipeText, read_text
from graft.recipe.trackers import problem
from graft.recipe.tree import Data, Evaluate, Fresh, NewTokenizer, Recipe, Train, explain
from graft.recipe.words import SYNONYMS, canonical

__all__ = ["Data", "Evaluate", "Fresh", "NewTokenizer", "Recipe", "Train", "explain", "read"]

SMALLEST_LR, LARGEST_LR = 1e-30, 1e30  # fp32 ends at 1.2e-38 and 3.4e38; steps divide and multiply


def read(
    source: str | Path | dict[str, Any] | Recipe,
    overrides: Iterable[str] = (),
    notices: list[str] | None = None,
) -> Recipe:
    """Read a recipe from a YAML file, a run's folder, a dict of settings or another Recipe.

    overrides: `key=value` words that change it.  notices: a list to which is added how presets and the words
    of other trainers were understood.
    Raises UsageError, which lists every unknown key, wrong value and contradiction at once.
    """
    overrides = list(overrides)
    if isinstance(source, Recipe):
        if not overrides:
            return source
        source = source.model_dump()
    where, text = text_of(source)
    if "stages" in text.settings:
        raise UsageError(
            f"{where} has several stages",
            "a recipe of one run",
            "carry it out by `graft train` or graft.run; for the rest name the folder of one of its stages",
        )
    usual = {} if isinstance(source, dict) else {"output": f"runs/{Path(where).stem}"}
    recipe, problems = checked(text.settings, overrides, [] if notices is None else notices, usual)
    if recipe is None:
        raise refusal(where, problems, text.lines)
    return recipe


def checked(
    settings: dict[str, Any], overrides: Iterable[str], notices: list[str], usual: dict[str, Any]
) -> tuple[Recipe | None, dict[str, str]]:
    """Return the recipe of these settings, None if they cannot be used, and what is wrong by key.

    overrides, notices: as for `read`.  usual: values of keys that the settings do not name.
    """
    raw, problems = canonical(settings, overrides, notices)
    raw = usual | raw
    problems |= resolve_methods(raw, notices)
    problems |= resolve_stage(raw, notices)
    stage = raw.get("stage")
    card = stage_cards().get(stage["name"] if isinstance(stage, dict) else stage or "")
    if card is not None and isinstance(raw.setdefault("evaluate", {}), dict):
        raw["evaluate"].setdefault("metrics", list(card.metrics))
    recipe = None
    try:
        recipe = Recipe.model_validate(raw)
        problems |= _contradictions(recipe)
    except ValidationError as error:
        problems |= dict(_problem(raw, detail) for detail in reversed(error.errors(include_url=False)))
    return (None if problems else recipe), problems


def text_of(source: str | Path | dict[str, Any]) -> tuple[str, RecipeText]:
    """Return the name of a recipe, for messages, and its settings with their lines."""
    if isinstance(source, dict):
        return "the recipe", RecipeText(source, {})
    is_run = Path(source).is_dir()
    path = Path(source) / "recipe.yaml" if is_run else Path(source)
    text = read_text(path)
    if is_run:
        rows_moved_with(text.settings, Path(source))
        text.settings["output"] = str(source)  # the run may have been moved since
        if "stages" not in text.settings:
            _held_out_by_train_seed(text.settings)
            find_again(text.settings, Path(source))
    return str(path), text


def _held_out_by_train_seed(settings: dict[str, Any]) -> None:
    """Give a run that was made before there was a data.seed the seed that chose its held-out rows."""
    data, train = settings.get("data"), settings.get("train")
    if isinstance(data, dict) and isinstance(train, dict) and "seed" in train:
        data.setdefault("seed", train["seed"])


def _problem(raw: dict[str, Any], detail: Any) -> tuple[str, str]:
    """Return one pydantic error as (dotted key, what is wrong)."""
    given: Any = raw
    path: list[str] = []
    for part in detail["loc"]:
        # A part that is not inside names a branch of a union, which the user did not write.
        if isinstance(given, dict):
            inside = part in given
        else:
            inside = isinstance(given, list) and isinstance(part, int) and part < len(given)
        if inside:
            given = given[part]
        if inside or (detail["type"] == "missing" and part == detail["loc"][-1]):
            path.append(str(part))
    key = ".".join(path)
    if detail["type"] == "extra_forbidden":
        return key, f"is an unknown key; nearest: {', '.join(_nearest(key))}"
    if detail["type"] == "missing":
        return key, "is missing"
    message = detail["msg"].removeprefix("Input ").removeprefix("Value error, ")
    shown = repr(given) if len(repr(given)) <= 40 else type(given).__name__
    return key, f"= {shown} {message}"


def _nearest(key: str) -> list[str]:
    """Return canonical keys that look like `key`: by their last part, or by a word of another trainer."""
    leaves = dict(SYNONYMS)
    for known in [*explain(), "data", "train", "evaluate"]:
        leaves[known.rpartition(".")[2]] = known
    section, _, leaf = key.rpartition(".")
    siblings = [word for word, target in leaves.items() if section and target.startswith(f"{section}.")]
    words = nearest(leaf, siblings or leaves, 2)
    return list(dict.fromkeys(leaves[word] for word in words))


def _contradictions(recipe: Recipe) -> dict[str, str]:
    """Return what is wrong by key: pairs of settings that cannot both be meant."""
    train, quant = recipe.train, recipe.quant
    problems: dict[str, str] = {}
    if recipe.fresh and quant != "none":
        problems["quant"] = (
            f"= {quant} stores pretrained weights; a fresh model is trained whole, with quant: none"
        )
    if recipe.group_size and quant in ("none", "int8"):
        problems["group_size"] = f"= {recipe.group_size} has no effect with quant = {quant}; choose int4"
    if recipe.fresh and [method["name"] for method in recipe.methods] != ["full"]:
        problems["method"] = "must be full for a fresh model: an adapter cannot learn on random weights"
    if train.batch_size % train.micro_batch_size:
        problems["train.micro_batch_size"] = (
            f"= {train.micro_batch_size} does not divide train.batch_size = {train.batch_size}"
        )
    if train.paged_budget_mb and not train.optimizer.startswith("paged"):
        problems["train.paged_budget_mb"] = (
            f"has no effect with train.optimizer = {train.optimizer}; choose paged_{train.optimizer}"
        )
    if not SMALLEST_LR <= train.lr <= LARGEST_LR:
        problems["train.lr"] = (
            f"= {train.lr:g} cannot be computed with in fp32; choose one from {SMALLEST_LR:g} to "
            f"{LARGEST_LR:g}, for example 2e-4"
        )
    if train.patience and not recipe.data.eval:
        problems["train.patience"] = "needs held-out rows: set data.eval"
    if wrong := problem(train.report_to):
        problems["train.report_to"] = wrong
    return problems | method_conflicts(recipe.methods, quant)


def refusal(where: str, problems: dict[str, str], lines: dict[str, int]) -> UsageError:
    """Return the error that lists all problems, in the order of the file."""
    keys = sorted(problems, key=lambda key: lines.get(key, 10**9))
    rows = [f"line {lines[key]}: {key}" if key in lines else key for key in keys]
    width = max(map(len, rows))
    table = "\n".join(f"  {row:<{width}}  {problems[key]}" for row, key in zip(rows, keys, strict=True))
    count = "1 setting" if len(problems) == 1 else f"{len(problems)} settings"
    return UsageError(
        f"{where} has {count} that cannot be used\n{table}",
        "known keys with values of their kind",
        "correct what is listed; `graft train --keys` shows every key with its help",
    )
