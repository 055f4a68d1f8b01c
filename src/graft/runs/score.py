"""Score what was opened, on held-out rows, and find prompts to ask it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from graft import seedling
from graft.data import Row, load_rows
from graft.data.read import choices, sources
from graft.data.report import unread
from graft.data.rows import Reject, as_chat
from graft.data.sample import sample, sampling
from graft.data.templates import Prompt
from graft.data.vocabulary import within
from graft.errors import DataError, UsageError, listed, notice
from graft.evaluate import HeldOut, Scored, Table, before_after, evaluate
from graft.evaluate.coverage import FIRST, Coverage, fingerprint
from graft.evaluate.losses import Progress, silent
from graft.evaluate.usable import by_examples, by_texts, check_metrics, unanswerable
from graft.planning.fit import fitting, require_tokenizer
from graft.recipe import Recipe, read
from graft.recipe.chain import last_finished
from graft.runs.build import scoring_feed
from graft.runs.open import Opened
from graft.runs.result import recorded_scores
from graft.sizes import counted
from graft.stages.stage import find, stage_of


@dataclass(frozen=True)
class Chosen:
    """Rows to score on.  rejects: rows beside them that cannot be read.  of: how many there were in all.

    sampled: what evaluate.limit took, in words; "" if it left none out.
    """

    rows: list[Row]
    rejects: Sequence[Reject] = ()
    of: int = 0
    sampled: str = ""


def chosen_rows(recipe: Recipe, data: str | None = None) -> Chosen:
    """Return the rows to score a recipe on: its test rows, else its eval rows; at most evaluate.limit.

    data: other rows, as `data.train` of a recipe names them, read as the recipe reads its own. Of a folder
    these are its test rows, else its validation rows, by the names of its files.
    """
    accepts = stage_of(recipe).accepts()
    if data is None:
        loaded = load_rows(seedling.located(recipe.data), accepts)
        rows, rejects = loaded.test or loaded.eval or [], loaded.held_rejects
    else:
        changes = {"train": data, "eval": None, "test": None, "limit": None}
        settings = seedling.located(recipe.data.model_copy(update=changes))
        settings = settings.model_copy(update={"train": sources(settings.train, "test")})
        for sentence in choices(data, settings.train):
            notice(f"scored on {listed(settings.train)}; {sentence}")
        loaded = load_rows(settings, accepts)
        rows, rejects = loaded.train, loaded.rejects
    seed = recipe.data.seed
    chosen = list(sample(rows, recipe.evaluate.limit, seed))  # held-out rows: evaluation asks them again
    return Chosen(chosen, rejects, len(rows) + len(rejects), sampling(chosen, rows, seed))


def evaluation_set(opened: Opened, recipe: Recipe, chosen: Chosen) -> tuple[HeldOut, Coverage]:
    """Return rows as evaluation needs them, and which they are.

    They are encoded for losses and classes, and kept as prompts for texts. A row that one of the recipe's
    metrics cannot use is left out of all of them.
    """
    base, metrics, size = opened.base, recipe.evaluate.metrics, recipe.evaluate.batch_size
    stage = stage_of(recipe)
    head = base.adapters[opened.adapter].head if opened.adapter else None
    known = (head.labels or tuple(map(str, range(head.num_labels)))) if head is not None else ()
    # A run asks as it learnt: prompts with completions are conversations only where it names a template.
    chat = opened.by_template if opened.recipe is None else recipe.data.template is not None
    rows = [as_chat(row) for row in chosen.rows] if chat else chosen.rows
    left_out, notes = list(chosen.rejects), list[str]()
    if by_texts(metrics):
        left_out += unanswerable(base, rows, opened.context())
        rows = _without(rows, left_out)
    unknown = _unknown(rows, known) if stage.labelled else {}
    encoder = stage.encoder(base.tokenizer, base.family, recipe.data, [*known, *unknown])
    encoded = within(
        encoder(_without(chosen.rows, left_out) if by_examples(metrics) else []),
        base.vocabulary,
        base.tokenizer,
        stage.aligned,
    )
    left_out += encoded.rejects
    rows = _without(rows, left_out)
    if by_examples(metrics):
        notes += _notes(encoded.cut, encoded.unused, recipe.data.max_length, len(rows))
    if unknown:
        notes.append(_note_of_classes(unknown, rows, metrics))
    writing = {"max_new_tokens": recipe.evaluate.max_new_tokens, "batch_size": size}
    examples = scoring_feed(base, recipe, encoded.examples)
    if by_examples(metrics):
        examples = stage.before_scoring(base, opened.adapter, examples, opened.folder)
    scored = Scored(examples, stage, tuple(unknown))
    coverage = Coverage(
        chosen.of, len(rows), left_out, chosen.sampled, notes, fingerprint(_without(chosen.rows, left_out))
    )
    return HeldOut(scored, rows, writing), coverage


def _without(rows: Sequence[Row], rejects: Sequence[Reject]) -> list[Row]:
    """Return the rows that are not among the rejects."""
    out = {reject.source for reject in rejects}
    return [row for row in rows if row.source not in out]


def _unknown(rows: Sequence[Row], known: Sequence[str]) -> dict[str, list[str]]:
    """Return the classes of the rows that are not known, each with the places of its rows."""
    places: dict[str, list[str]] = {}
    for row in rows:
        for name in {str(tag) for tag in (row.value[1] if row.kind == "tags" else row.value[1:2])}:
            if name not in known:
                places.setdefault(name, []).append(row.source)
    return dict(sorted(places.items()))


def _note_of_classes(unknown: dict[str, list[str]], rows: Sequence[Row], metrics: Sequence[str]) -> str:
    """Return what rows of classes that the head does not know mean for the metrics."""
    scored = {row.source for row in rows}
    places = list(dict.fromkeys(p for sources in unknown.values() for p in sources if p in scored))
    effect = "they have no loss" if list(metrics) == ["loss"] else "they count as errors"
    effect += ", and the loss is that of the other rows" if {"loss"} < set(metrics) else ""
    return (
        f"{counted(len(places), 'row')} of classes unknown to the head ({listed(unknown)}): {effect}; "
        f"first {listed(places, FIRST)}"
    )


def _notes(cut: Sequence[str], unused: dict[str, int], max_length: int, rows: int) -> list[str]:
    """Return what encoding did to the rows that are scored."""
    notes = unread(unused, max(rows, 1))
    if cut:
        places = listed(cut, FIRST)
        notes.append(
            f"{counted(len(cut), 'row')} cut to {max_length} tokens, and scored without the rest ({places})"
        )
    return notes


def score(opened: Opened, recipe: Recipe, data: str | None = None, progress: Progress = silent) -> Table:
    """Return the recipe's metrics without and with the adapter; a table without columns if there are no rows.

    data: rows to score on, as `data.train` of a recipe names them; by default those of `chosen_rows`.
    progress: called with (what, done, total).
    Raises UsageError for metrics that the rows or the model do not have, DataError if no row can be scored.
    """
    return score_rows(opened, recipe, chosen_rows(recipe, data), progress)


def score_rows(opened: Opened, recipe: Recipe, chosen: Chosen, progress: Progress = silent) -> Table:
    """Return `score` of these rows.  progress: called with (what, done, total)."""
    base = opened.base
    require_tokenizer(base.tokenizer, base.name, base.vocabulary)
    recipe = fitting(recipe, base.model.config, base.positions([opened.adapter]))
    if not chosen.rows:
        return Table({}, [])
    stage = stage_of(recipe)
    check_metrics(recipe.evaluate.metrics, stage, base.family)
    if stage.headed and (opened.adapter is None or base.adapters[opened.adapter].head is None):
        raise UsageError(
            f"{opened.adapter or base.name} has no task head, so it gives no answer in stage {stage.name()}",
            f"a run of stage {stage.name()}, or an adapter with a task head",
            "name one, or choose another stage",
        )
    held, coverage = evaluation_set(opened, recipe, chosen)
    if not coverage.scored:
        raise DataError(
            "; ".join(coverage.lines()), "rows that can be scored", "repair these rows, or give others"
        )
    metrics = recipe.evaluate.metrics
    if opened.adapter is None:
        return Table({"model": evaluate(base, held, metrics, progress=progress)}, [], coverage)
    table = before_after(base, held, metrics, adapter=opened.adapter, progress=progress)
    return replace(table, coverage=coverage)


def scoring_recipe(opened: Opened, stage: str | None, metrics: Sequence[str], limit: int | None) -> Recipe:
    """Return the recipe to score by: the run's with these changes; a new one for a model that is no run."""
    changes = [f"evaluate.metrics={json.dumps(list(metrics))}"] if metrics else []
    changes += [f"evaluate.limit={limit}"] if limit else []
    changes += [f"stage={stage}"] if stage else []
    if opened.recipe is not None:
        return read(opened.recipe, changes)
    objective = find(stage or "sft").objective_of(opened.base.family)
    return read({"model": opened.base.name, "objective": objective}, changes)


def evaluation_of(name: str) -> dict[str, Any]:
    """Return what a run's folder records of its scores; empty for anything else."""
    return recorded_scores(Path(last_finished(name)))


def prompts_of(opened: Opened, limit: int) -> Sequence[Prompt]:
    """Return prompts to compare models by: the recipe's samples, else what its held-out rows ask.

    Raises UsageError for a model that is no run.
    """
    recipe = opened.recipe
    if recipe is None:
        given = "the first model is not a run, so there are no prompts"
        raise UsageError(given, "--prompt TEXT or --prompts FILE", "give prompts, or name a run first")
    if recipe.train.samples:
        return recipe.train.samples[:limit]
    return stage_of(recipe).questions(chosen_rows(recipe).rows)[:limit]
