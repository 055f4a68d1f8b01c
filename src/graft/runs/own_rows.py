"""Rows of a run's own to measure an export with: those that are held out, else those it learnt from.

They are encoded as in training, and of each the answer alone is measured. Which ones they are depends on the
rows and on data.seed alone, so that `graft verify` finds the same ones.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from graft import seedling
from graft.base.base import Base
from graft.data import Row, load_rows
from graft.data.batches import Batch
from graft.data.encode import IGNORED
from graft.data.sample import sample
from graft.data.vocabulary import within
from graft.errors import GraftError, Notice
from graft.models.tokenizer import tokenizer_in
from graft.planning.fit import fitting
from graft.recipe import Recipe, read
from graft.shipping.classifier import labels_of
from graft.shipping.prompts import Prompt, Prompts
from graft.stages.stage import Stage, stage_of

ROWS = 16  # that are measured at most
LONGEST = 512  # tokens of a row
NUMBERS = 2**26  # logits that are held of all rows: 256 MiB


def own_rows(recipe: Recipe, base: Base, adapter: str | None) -> Prompts | None:
    """Return a sample of a run's rows; None if it has none, or none that fits the model.

    base: with the tokenizer of training.  Raises GraftError where the rows cannot be read.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)  # the run told them
        recipe = fitting(recipe, base.model.config, base.positions([adapter]))
        stage = stage_of(recipe)
        loaded = load_rows(seedling.located(recipe.data), stage.accepts())
        kinds = {"test": loaded.test, "held-out": loaded.eval, "training": loaded.train}
        kind = next((kind for kind, rows in kinds.items() if rows), None)
        if kind is None:
            return None
        rows: Sequence[Row] = kinds[kind] or []
        prompts = _prompts(stage, recipe, base, adapter, sample(rows, ROWS, recipe.data.seed))
    if not prompts:
        return None
    head = base.adapters[adapter].head if adapter else None
    classes = labels_of(base, str(adapter)) if head is not None and head.num_labels > 1 else []
    source = {"kind": kind, "of": len(rows), "seed": recipe.data.seed}
    return Prompts(prompts, source, headed=head is not None, classes=classes)


def again(folder: Path, said: Mapping[str, Any], base: Base, adapter: str | None) -> Prompts | None:
    """Return the rows that a certificate was measured with; None if they are gone.

    folder: of the run.  said: what the certificate says of them.  base: as `graft verify` loads it.
    """
    if not (folder / "recipe.yaml").is_file():
        return None
    try:
        found = rows_in(folder, base, adapter)
    except (GraftError, OSError):
        return None
    return found if found is not None and found.source.get("kind") == said.get("kind") else None


def rows_in(folder: Path, base: Base, adapter: str | None) -> Prompts | None:
    """Return `own_rows` of a run's folder, read by its own tokenizer, whatever the base has."""
    own = base.tokenizer
    try:
        if (folder / "adapter" / "tokenizer_config.json").exists():
            base.tokenizer = tokenizer_in(folder / "adapter")
        return own_rows(read(folder), base, adapter)
    finally:
        base.tokenizer = own


def _prompts(
    stage: Stage, recipe: Recipe, base: Base, adapter: str | None, rows: Sequence[Row]
) -> list[Prompt]:
    """Return these rows as the run's stage encodes them, one prompt each."""
    head = base.adapters[adapter].head if adapter else None
    labels = labels_of(base, str(adapter)) if head is not None else []
    encoder = stage.encoder(base.tokenizer, base.family, recipe.data, labels)
    examples = within(encoder(rows), base.vocabulary, base.tokenizer, stage.aligned).examples
    batches = stage.batches(base, recipe.data.max_length)
    places = max(1, NUMBERS // base.vocabulary // ROWS)
    plain = recipe.stage_name in ("sft", "classify")  # examples that their batches do not change by chance
    plain = plain or (recipe.stage_name == "pretrain" and recipe.objective == "causal")
    found = []
    for example in examples[:ROWS]:
        prompt = _of_batch(batches.padded([example]), base) if plain else _of_ids(example.ids, base)
        if prompt is not None:
            found.append(Prompt(prompt.ids, prompt.wanted[:places], prompt.inputs, _first(prompt, places)))
    return found


def _first(prompt: Prompt, places: int) -> list[int] | None:
    return None if prompt.at is None else prompt.at[:places]


def _of_ids(ids: Sequence[int], base: Base) -> Prompt | None:
    """Return the ids of a row that holds several texts, or a question alone: each next token is measured."""
    ids = list(ids)[:LONGEST]
    if len(ids) < 2:
        return None
    inputs = {"decoder_input_ids": ids} if base.family == "seq2seq" else {}
    return Prompt(ids, ids[1:], inputs, list(range(len(ids) - 1)))


def _of_batch(batch: Batch, base: Base) -> Prompt | None:
    """Return the one row of a batch, filled up on the right: what is read, and what is learnt of it."""
    length = min(int(batch.inputs["attention_mask"].sum()), LONGEST)
    ids = batch.inputs["input_ids"][0][:length].tolist()
    wanted: list[int] = batch.labels.tolist()
    at: list[int] | None = None  # one class for the row
    if batch.labels.ndim > 1:
        labels = batch.labels[0].tolist()
        shifted = base.family == "causal" and not _tells_words(base)
        ahead = labels[1:] if shifted else labels
        at = [place for place, label in enumerate(ahead[:LONGEST]) if label != IGNORED]
        wanted = [ahead[place] for place in at]
        if not at:
            return None
    decoded = at[-1] + 1 if at else 0
    inputs = {
        name: tensor[0][: decoded if name.startswith("decoder") else length].tolist()
        for name, tensor in batch.inputs.items()
        if name not in ("input_ids", "attention_mask")
    }
    return Prompt(ids, wanted, inputs, at)


def _tells_words(base: Base) -> bool:
    """Return whether an adapter on the base tells a class of every token, at the token itself."""
    return any(adapter.head is not None and adapter.head.every_token for adapter in base.adapters.values())
