"""Settings that a run has no use for: they are said before the first step, never ignored in silence.

A setting that contradicts another is refused when the recipe is read. Those here are sound, but what they
would change does not exist in this run: no held-out rows, no dropout in the base, no text to write.
"""

from collections.abc import Iterator
from typing import Any

from graft.base.adapter import Adapter
from graft.base.base import Base
from graft.data import Prepared
from graft.evaluate.usable import by_texts
from graft.recipe import Recipe
from graft.stages.stage import Stage


def without_effect(
    recipe: Recipe, stage: Stage, base: Base, adapter: Adapter, prepared: Prepared
) -> list[str]:
    """Return a sentence for every setting that differs from its default and changes nothing in this run."""
    usual = Recipe()
    usual.evaluate.metrics = list(stage.metrics)
    reasons = dict(_reasons(recipe, stage, base, adapter, prepared))
    return [
        f"{key}={_setting(recipe, key)} has no effect here: {reason}"
        for key, reason in reasons.items()
        if _setting(recipe, key) != _setting(usual, key)
    ]


def _setting(recipe: Recipe, key: str) -> Any:
    section, _, leaf = key.partition(".")
    return getattr(getattr(recipe, section), leaf)


def _reasons(
    recipe: Recipe, stage: Stage, base: Base, adapter: Adapter, prepared: Prepared
) -> Iterator[tuple[str, str]]:
    """Yield the keys that change nothing in this run, whatever they are set to, each with the reason."""
    data, train, evaluate = recipe.data, recipe.train, recipe.evaluate
    held = bool(data.eval or data.test)
    if train.max_steps:
        yield "train.epochs", f"train.max_steps={train.max_steps} says how many steps there are"
    groups = [group for group in adapter.param_groups(train.lr) if group["params"]]
    if all(method.lr is not None for method in adapter.methods):
        yield "train.lr", "every method has a learning rate of its own (method.lr)"
    if all("weight_decay" in group for group in groups):
        yield "train.weight_decay", "nothing that is trained is decayed"
    if not base.has_dropout:
        yield "train.dropout", "the base has no dropout"
    if stage.online:
        for key in ("train.dropout", "train.neftune_alpha"):
            yield key, "what learns from an answer must be what wrote it, so that nothing is random in it"
    if not train.samples:
        yield "train.sample_tokens", "train.samples has no prompts"
    elif adapter.head is not None:
        yield "train.sample_tokens", "the adapter answers with classes"
    if not prepared.eval and not train.samples:
        yield "train.eval_every", "no rows are held out to evaluate on, and train.samples has no prompts"
    if not stage.packs:
        yield "data.pack", f"stage {stage.name()} never packs rows"
    if not {"messages", "preference", "prompt"} & {*stage.layouts}:
        yield "data.template", f"stage {stage.name()} reads no conversations"
    if stage.labelled:
        yield "data.control_tokens", f"stage {stage.name()} refuses them in any case"
    if not prepared.tagged and not {*data.tag_names} & {*(prepared.labels or ())}:
        yield "data.tag_names", "the rows have no tags, and no numbers for classes"
    if not (isinstance(data.eval, float) and data.eval) and not data.limit and not evaluate.limit:
        yield "data.seed", "no share of the rows is held out, and no limit takes a sample"
    if not held:
        for key in ("metrics", "limit", "max_new_tokens", "batch_size"):
            yield f"evaluate.{key}", "no rows are held out (data.eval, data.test)"
    elif not by_texts(evaluate.metrics):
        yield "evaluate.max_new_tokens", "no metric scores generated texts"
