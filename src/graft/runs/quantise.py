"""Write a model with packed weights; rows to calibrate by are optional."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from graft import seedling
from graft.base.base import Base
from graft.data import prepare
from graft.errors import notice
from graft.models.load import load
from graft.planning.fit import fitting, require_tokenizer
from graft.quant import Scheme
from graft.quant.experts import packed_experts
from graft.quant.gptq import quantise_calibrated
from graft.quant.hf import GraftQuantConfig, packed_by
from graft.quant.replace import damaged, quantise_experts
from graft.recipe import Recipe
from graft.runs.build import feed, recipe_behind
from graft.shipping.certificate import certify_quantised
from graft.stages.stage import stage_of
from graft.storage import named_errors, output_folder, refuse_occupied


def quantise(
    name: str,
    folder: Path,
    quant: str,
    *,
    group_size: int = 0,
    calibrate: Recipe | None = None,
    force: bool = False,
    tell: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a model with packed linear weights, which graft.load and transformers (with graft imported) read.

    calibrate: a recipe whose rows choose the codes, by GPTQ; None rounds.
    tell: called with (blocks done, number of blocks).
    Raises UsageError for a folder that holds something, MachineError for errors of the system (SpaceError if
    the disk is full).
    """
    refuse_occupied(folder, force=force)
    scheme = Scheme(quant, group_size)
    base = load(name, quant="none" if calibrate else quant, group_size=group_size)
    if calibrate:
        quantise_calibrated(base.model, _calibration(base, calibrate), scheme, tell)
        if bad := quantise_experts(base.model, scheme):
            raise damaged(bad)
        if packed_experts(base.model):
            notice("the experts of the mixture are rounded: only codes of linears are chosen by calibration")
        packed_by(base.model, GraftQuantConfig(scheme.name, scheme.block))
    kind = base.file_dtype if base.file_dtype.itemsize == 2 else torch.bfloat16
    if kind != base.dtype:
        base.model.to(kind)  # what is not packed
    disable_progress_bar()
    needed = sum(tensor.nbytes for tensor in base.model.state_dict().values())
    with output_folder(folder, force=force) as partial, named_errors("while writing it", partial, needed):
        base.model.save_pretrained(partial)
        if base.tokenizer is not None:
            base.tokenizer.save_pretrained(partial)
        certify_quantised(base, partial, quant, calibrated=calibrate is not None)
    return folder


def _calibration(base: Base, recipe: Recipe) -> list[dict[str, Any]]:
    """Return the inputs of `data.limit` rows, sampled, as in training, one row each: none is padded."""
    limit = recipe.data.limit
    recipe = recipe_behind(recipe)
    few = recipe.data.model_copy(update={"pack": False, "eval": None, "limit": limit})
    recipe = recipe.model_copy(update={"data": few})
    recipe = fitting(recipe, base.model.config, 0)
    require_tokenizer(base.tokenizer, base.name, base.vocabulary)
    rows = prepare(
        seedling.located(recipe.data),
        base.tokenizer,
        stage_of(recipe),
        family=base.family,
        vocabulary=base.vocabulary,
    ).train
    keywords = {} if base.family == "masked" else {"use_cache": False}
    batches = feed(base, recipe, rows, 1, 1)
    steps = range(batches.steps_per_epoch)
    return [batches.step(0, index)[0].to(base.device).inputs | keywords for index in steps]
