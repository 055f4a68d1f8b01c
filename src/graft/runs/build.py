"""Build the objects that a recipe describes: its base, its methods, its batches."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from graft import seedling, storage
from graft.base.base import Base
from graft.data import load_rows
from graft.data.feed import Feed
from graft.data.train_tokenizer import train_bpe
from graft.models.fresh import fresh
from graft.models.load import load
from graft.models.tokenizer import tokenizer_in
from graft.planning.plan import config_of
from graft.recipe import NewTokenizer, Recipe, read
from graft.stages.stage import stage_of, task_of


def load_base(recipe: Recipe, quant: str | None = None) -> Base:
    """Return the base of a recipe: loaded, or with random weights and a tokenizer that is trained if it is new."""
    task = task_of(recipe, config_of(recipe))
    if isinstance(recipe.model, str):
        quant = quant or recipe.quant
        return load(recipe.model, quant=quant, group_size=recipe.group_size, dtype=recipe.dtype, task=task)
    wanted, folder = recipe.model.tokenizer, Path(recipe.output) / "tokenizer"
    if isinstance(wanted, NewTokenizer) and not folder.exists():  # the run's folder keeps it
        stage = stage_of(recipe)
        rows = load_rows(seedling.located(recipe.data), stage.accepts(), seed=recipe.train.seed).train
        texts = (text for row in rows for text in row.texts())
        tokenizer = train_bpe(texts, wanted.vocab_size, max_length=recipe.data.max_length)
        storage.commit(folder, tokenizer.save_pretrained)
    tokenizer = tokenizer_in(folder if isinstance(wanted, NewTokenizer) else wanted)
    return fresh(recipe.model.config, tokenizer, dtype=recipe.dtype, seed=recipe.train.seed, task=task)


def recipe_behind(recipe: Recipe) -> Recipe:
    """Return the recipe, or that of the run whose folder `data.train` names."""
    folder = Path(str(recipe.data.train))
    return read(folder) if (folder / "recipe.yaml").exists() else recipe


def feed(base: Base, recipe: Recipe, examples: Sequence[Any], batch_size: int, micro_batch_size: int) -> Feed:
    """Return the batches of examples as this base and recipe want them; packed where the model allows it."""
    length = recipe.data.max_length
    pack = recipe.data.pack and base.unpackable(length) is None
    batches = stage_of(recipe).batches(base, length, pack=pack)
    return Feed(examples, batches, batch_size, micro_batch_size, recipe.train.seed)
