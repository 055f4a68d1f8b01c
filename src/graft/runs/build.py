"""Build the objects that a recipe describes: its base and its batches."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from graft import seedling, storage
from graft.base.adapter import Adapter
from graft.base.base import Base
from graft.core.method import Method
from graft.data import load_rows
from graft.data.feed import Feed
from graft.data.train_tokenizer import train_bpe
from graft.errors import Notice
from graft.models.dtype import AUTO, choose
from graft.models.fresh import fresh
from graft.models.load import load
from graft.models.tokenizer import tokenizer_in
from graft.planning.dtype import surely_fits
from graft.planning.plan import Shape, config_of, plan, plan_model
from graft.recipe import NewTokenizer, Recipe, read
from graft.stages.stage import stage_of, task_of


def load_base(recipe: Recipe, quant: str | None = None) -> Base:
    """Return the base of a recipe: loaded, or with random weights; a new tokenizer is trained on the rows.

    quant: how to store the weights, instead of the recipe's `quant`.
    """
    task = task_of(recipe, config_of(recipe))
    if isinstance(recipe.model, str):
        quant = quant or recipe.quant
        return load(recipe.model, quant=quant, group_size=recipe.group_size, dtype=recipe.dtype, task=task)
    wanted = recipe.model.tokenizer
    tokenizer = tokenizer_in(_new_tokenizer(recipe, wanted) if isinstance(wanted, NewTokenizer) else wanted)
    return fresh(recipe.model.config, tokenizer, dtype=recipe.dtype, seed=recipe.train.seed, task=task)


def settled(recipe: Recipe) -> Recipe:
    """Return the recipe with what its `auto` settings come to here.

    dtype: the fastest number format of those that fit.  train.gradient_checkpointing: only if memory is
    short.
    """
    choice = choose("cuda" if torch.cuda.is_available() else "cpu")
    dtype = choice.dtype if recipe.dtype == AUTO else recipe.dtype
    again = recipe.train.gradient_checkpointing
    may_change = again == AUTO or (recipe.dtype == AUTO and choice.free and dtype == "fp32")
    if may_change and not surely_fits(recipe, config_of(recipe)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Notice)  # the run gives the same notices
            planned = plan(recipe)
        dtype, again = planned.dtype, planned.checkpointing
    return _with(recipe, dtype, again)


def settled_on(base: Base, adapter: Adapter, recipe: Recipe) -> Recipe:
    """Return the recipe of a run on a base that is loaded; see `settled`."""
    again = recipe.train.gradient_checkpointing
    if again == AUTO and not surely_fits(recipe, base.model.config):
        shape = Shape(
            recipe.train.micro_batch_size, recipe.data.max_length, optimizer=recipe.train.optimizer,
            stage=stage_of(recipe),
        )  # fmt: skip
        again = plan_model(
            base.model.config, adapter.methods, shape, quant=base.quant, dtype=base.dtype, may_recompute=True
        ).checkpointing
    return _with(recipe, recipe.dtype, again)


def grown(base: Base, name: str, methods: Sequence[Method], *, seed: int) -> None:
    """Attach an adapter anew where a stage adds methods to its own, such as a head; its tensors stay.

    seed: of the values of what is new.
    """
    if len(methods) == len(base.adapters[name].methods):
        return
    before = base.detach(name)
    torch.manual_seed(seed)
    after = base.attach(name, methods)
    after.restore_checkpoint_state({**after.checkpoint_state(), **before.checkpoint_state()})


def _with(recipe: Recipe, dtype: str, again: bool | str) -> Recipe:
    train = recipe.train.model_copy(update={"gradient_checkpointing": again is True})
    return recipe.model_copy(update={"dtype": dtype, "train": train})


def _new_tokenizer(recipe: Recipe, wanted: NewTokenizer) -> Path:
    """Return the folder of a tokenizer trained on the recipe's rows; the run's folder keeps it."""
    folder = Path(recipe.output) / "tokenizer"
    if not folder.exists():
        accepts = stage_of(recipe).accepts()
        rows = load_rows(seedling.located(recipe.data), accepts).train
        texts = (text for row in rows for text in row.texts())
        tokenizer = train_bpe(texts, wanted.vocab_size, max_length=recipe.data.max_length)
        storage.commit(folder, tokenizer.save_pretrained)
    return folder


def recipe_behind(recipe: Recipe) -> Recipe:
    """Return the recipe of the run whose folder `data.train` names; if it names rows, the recipe itself."""
    folder = Path(str(recipe.data.train))
    return read(folder) if (folder / "recipe.yaml").exists() else recipe


def feed(base: Base, recipe: Recipe, examples: Sequence[Any], batch_size: int, micro_batch_size: int) -> Feed:
    """Return the batches of a run's steps; packed if the recipe asks for it and the model allows it."""
    stage, length = stage_of(recipe), recipe.data.max_length
    may_pack = stage.packs and base.unpackable(length) is None
    packed = stage.batches(base, length, pack=may_pack)
    batches = packed if recipe.data.pack else stage.batches(base, length, pack=False)
    # Whether the recipe asks for packing must not change which rows make a step.
    return Feed(
        examples, batches, batch_size, micro_batch_size, recipe.train.seed, by_length=not packed.packs
    )


def scoring_feed(base: Base, recipe: Recipe, examples: Sequence[Any]) -> Feed:
    """Return the batches of an evaluation, in which padded rows of similar lengths stand together."""
    size = recipe.evaluate.batch_size
    of_steps = feed(base, recipe, examples, size, size)
    return replace(of_steps, by_length=not of_steps.batches.packs)
