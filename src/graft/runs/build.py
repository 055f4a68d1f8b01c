"""Build the objects that a recipe describes: its base, its methods, its batches."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from graft import seedling, storage
from graft.base.base import Base
from graft.core.method import Method
from graft.core.positions import first_position
from graft.core.registry import classifying, described, find
from graft.data import Row, load_rows
from graft.data.feed import Feed
from graft.data.layouts import recognise
from graft.data.read import records
from graft.data.rows import Reject
from graft.data.train_tokenizer import train_bpe
from graft.models.fresh import fresh
from graft.models.load import load
from graft.models.tokenizer import tokenizer_in
from graft.recipe import Data, NewTokenizer, Recipe, read

TASKS = {"causal": None, "masked": "masked", "span": None}


def load_base(recipe: Recipe, quant: str | None = None) -> Base:
    """The base of a recipe: loaded, or with random weights and a tokenizer that the run's folder keeps once trained."""
    task = TASKS[recipe.objective]
    words = any(find(settings["name"]).word_head for settings in recipe.methods)
    if isinstance(recipe.model, str):
        stored = {"quant": quant or recipe.quant, "group_size": recipe.group_size, "dtype": recipe.dtype}
        base = load(recipe.model, **stored, task=task)
        if (
            recipe.stage == "classify" and base.family == "masked" and not words
        ):  # its word head is of no use then
            base = load(recipe.model, **stored, task="encoder")
        return base
    wanted, folder = recipe.model.tokenizer, Path(recipe.output) / "tokenizer"
    if isinstance(wanted, NewTokenizer) and not folder.exists():
        rows = load_rows(seedling.located(recipe.data), stage=recipe.stage, seed=recipe.train.seed).train
        texts = (text for row in rows for text in row.texts())
        made = train_bpe(texts, wanted.vocab_size, max_length=recipe.data.max_length)
        storage.commit(folder, made.save_pretrained)
    tokenizer = tokenizer_in(folder if isinstance(wanted, NewTokenizer) else wanted)
    return fresh(recipe.model.config, tokenizer, dtype=recipe.dtype, seed=recipe.train.seed, task=task)


def methods_of(recipe: Recipe, labels: Sequence[str] = (), *, tagged: bool = False) -> list[Method]:
    """The recipe's methods as objects; a classifier gets the classes of its rows, and a head where none is named.

    tagged: the rows have a class for every word.
    """
    methods = [described(settings) for settings in recipe.methods]
    return classifying(methods, labels, tagged=tagged) if recipe.stage == "classify" else methods


def asks_by_template(data: Data, stage: str) -> bool:
    """Whether rows are conversations, asked through the chat template, or plain prompts and texts."""
    if stage != "sft" or data.template is not None:
        return stage == "sft"
    rows = (
        recognise(r, stage, data.format, data.columns)
        for r in records(data.train)
        if not isinstance(r, Reject)
    )
    return any(row.kind == "chat" for row in islice((row for row in rows if isinstance(row, Row)), 1))


def recipe_behind(recipe: Recipe) -> Recipe:
    """Return the recipe, or that of the run whose folder `data.train` names."""
    folder = Path(str(recipe.data.train))
    return read(folder) if (folder / "recipe.yaml").exists() else recipe


def feed(base: Base, recipe: Recipe, examples: Sequence[Any], batch_size: int, micro_batch_size: int) -> Feed:
    """Examples as this base and recipe want their batches; packed where the model allows it."""
    config, length = base.model.config, recipe.data.max_length
    return Feed(
        examples,
        base.tokenizer,
        batch_size=batch_size,
        micro_batch_size=micro_batch_size,
        max_length=length,
        pack=recipe.data.pack and base.unpackable(length) is None,
        seed=recipe.train.seed,
        stage=recipe.stage,
        objective=recipe.objective,
        family=base.family,
        first_position=first_position(config),
        decoder_start=getattr(config, "decoder_start_token_id", None),
    )
