"""Score a model on held-out rows, once or twice: without and with the adapter, in one table.

Rows with the same prompt are one case with several references: its text is generated once, and metrics that
accept several references get all of them.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

from graft.base.base import Base
from graft.data.encode import IGNORED
from graft.data.feed import Feed
from graft.data.rows import Row, with_answers
from graft.data.tags import marked
from graft.data.templates import Prompt
from graft.errors import DataError, TrainingError
from graft.evaluate.answers import answers
from graft.evaluate.confusion import Counts, confusion
from graft.evaluate.coverage import Coverage
from graft.evaluate.losses import Progress, classes, silent, summed
from graft.evaluate.metrics import CLASS, LOSS, TEXT, check, class_scores, user_scores
from graft.stages.stage import Points, Stage

SHOWN = 20  # rows whose classes are kept next to the scores


@dataclass(frozen=True)
class Case:
    """One prompt, every reference answer to it, and the rows they come from."""

    prompt: Prompt
    references: list[str]
    rows: list[Row]


@dataclass(frozen=True)
class Scored:
    """Encoded examples, and the stage whose loss and classes score them.

    unknown: names of classes that the head does not know, whose indices follow those that it knows. It never
    predicts them; such rows have no loss.
    """

    feed: Feed
    stage: Stage
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True)
class HeldOut:
    """Rows that were held out of training, in every form that a metric needs.

    scored: for losses and classes; None if only texts are scored.
    rows: the rows themselves, for generated texts.  writing: keywords of `Base.generate`.
    """

    scored: Scored | None = None
    rows: Sequence[Row] = ()
    writing: Mapping[str, Any] = field(default_factory=dict)


def cases(rows: Sequence[Row]) -> list[Case]:
    """Return the prompts with their references, in order of first appearance.

    Rows without an answer that a text can be compared with are left out.
    """
    grouped: dict[str, Case] = {}
    for row in map(_best, rows):
        prompt: Prompt
        if row.kind == "pair":
            prompt, answer = row.value
        elif row.kind == "chat" and row.value[-1]["role"] == "assistant":
            prompt, answer = row.value[:-1], row.value[-1]["content"]
            # An answer that must not be learnt is no reference, nor is the text beside a tool's call.
            if row.value[-1].get("weight") == 0 or row.value[-1].get("tool_calls"):
                continue
            if row.tools:
                prompt = {"messages": prompt, "tools": row.tools}
        else:
            continue
        case = grouped.setdefault(json.dumps(prompt, sort_keys=True), Case(prompt, [], []))
        case.references.append(answer.strip())
        case.rows.append(row)
    return list(grouped.values())


def _best(row: Row) -> Row:
    """Return the prompt of compared answers with the one to write: the best, or a good one; others as is."""
    good = row.kind == "ranking" or (row.kind == "judged" and row.value[2])
    return with_answers(row)[0] if good else row


def evaluate(
    base: Base,
    held: HeldOut,
    metrics: Sequence[str],
    *,
    adapter: str | None = None,
    progress: Progress = silent,
    keep: list[dict[str, Any]] | None = None,
    curves: dict[str, Points | Counts] | None = None,
) -> dict[str, float]:
    """Return {metric: value} on held-out rows, answered by `adapter` (None: the bare or merged base).

    metrics: names of `evaluate.metrics` or of the stage, or package.module:function.
    progress: called with (what, done, total).
    keep: a list that receives {"prompt", "references", "text"} of every generated text, and of the first
    SHOWN rows with classes.  curves: receives those of the stage (`Stage.curves`), and `confusion`.
    Raises UsageError for an unknown metric, DataError if the rows that a metric needs are missing.
    """
    by_classes = held.scored is not None and held.scored.stage.labelled
    by_loss = set(LOSS) if held.scored is None or by_classes else {*LOSS, *held.scored.stage.metrics}
    check(metrics, by_loss)
    scores: dict[str, float] = {}
    of_texts: dict[str, float] = {}
    with base.using(adapter):
        if set(metrics) & by_loss:
            scored = _scored(held, metrics)
            loss, sums = summed(base, _with_loss(scored, base, adapter), scored.stage, progress)
            _require_finite(loss, base, adapter)
            scores |= scored.stage.scores(loss, sums)
            if curves is not None:
                curves |= scored.stage.curves(sums)
        if set(metrics) & set(CLASS) - by_loss:
            predicted, true = classes(base, _scored(held, metrics).feed, progress)
            names = _labels(base, adapter, held)
            scores |= class_scores(metrics, predicted, true, names)
            if curves is not None and names:
                curves["confusion"] = confusion(predicted, true, names)
            if keep is not None:
                keep += _answered(base, held, adapter)
        text_metrics = [name for name in metrics if name in TEXT or ":" in name]
        if text_metrics:
            of_texts = _text_scores(base, held, text_metrics, progress, keep)
    scores |= of_texts
    # A function of the user may return several numbers under names that are not in `metrics`.
    return {name: scores[name] for name in metrics if name in scores} | of_texts


def _require_finite(loss: float, base: Base, adapter: str | None) -> None:
    """Raise TrainingError for a loss that is no number: then no score means anything."""
    if not math.isfinite(loss):
        who = f"adapter {adapter!r}" if adapter else base.name
        raise TrainingError(
            f"the loss of {who} on the held-out rows is {loss}: it answers with numbers that are not finite",
            "finite logits",
            "use an earlier checkpoint, train again with a lower lr, or load the base with dtype fp32",
        )


@dataclass(frozen=True)
class Table:
    """The same metrics in several columns.

    columns: {title: {metric: value}}.  texts: {"prompt", "references", and the text of each column}.
    coverage: the rows that the scores are about.  curves: of the last column, by name.
    """

    columns: dict[str, dict[str, float]]
    texts: list[dict[str, Any]]
    coverage: Coverage = field(default_factory=Coverage)
    curves: dict[str, Points | Counts] = field(default_factory=dict)

    def rows(self) -> list[tuple[str, list[float | None]]]:
        """Return (metric, its value in each column or None) of every metric."""
        names = dict.fromkeys(name for column in self.columns.values() for name in column)
        return [(name, [column.get(name) for column in self.columns.values()]) for name in names]


def before_after(
    base: Base, held: HeldOut, metrics: Sequence[str], *, adapter: str, progress: Progress = silent
) -> Table:
    """Return the scores of the bare base and of the adapter on the same rows.

    A bare base predicts no classes: for them the first column is the rows' most frequent class. Of another
    stage whose adapters answer by a head it is the stage's own baseline.
    """
    labelled = held.scored is not None and held.scored.stage.labelled
    before: list[dict[str, Any]] = []
    after: list[dict[str, Any]] = []
    if labelled:
        columns = {"majority": majority(_scored(held, metrics).feed, metrics, _labels(base, adapter, held))}
    elif held.scored is not None and held.scored.stage.headed:
        columns = _baseline(held.scored, metrics)
    else:
        columns = {"before": evaluate(base, held, metrics, adapter=None, progress=progress, keep=before)}
    curves: dict[str, Points | Counts] = {}
    columns["after"] = evaluate(
        base, held, metrics, adapter=adapter, progress=progress, keep=after, curves=curves
    )
    earlier = [{"before": record["text"]} for record in before] or [{}] * len(after)
    texts = [
        {"prompt": later["prompt"], "references": later["references"], **first, "after": later["text"]}
        for later, first in zip(after, earlier, strict=True)
    ]
    return Table(columns, texts, curves=curves)


def _baseline(scored: Scored, metrics: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return the column of the stage's baseline, with those of its scores that are asked for."""
    found = scored.stage.baseline(scored.feed)
    if found is None:
        return {}
    title, scores = found
    return {title: {name: scores[name] for name in metrics if name in scores}}


def majority(feed: Feed, metrics: Sequence[str], labels: Sequence[str] = ()) -> dict[str, float]:
    """Return the class metrics of always answering the most frequent class, which a model has to beat."""
    true: list[Any] = []
    for example in feed.examples:
        tags = example.parts.get("tags")
        true.append(example.target if tags is None else [tag for tag in tags if tag != IGNORED])
    tagged = isinstance(true[0], list)
    usual = Counter(chain(*true) if tagged else true).most_common(1)[0][0]
    predicted = [[usual] * len(row) for row in true] if tagged else [usual] * len(true)
    return class_scores(metrics, predicted, true, labels)


def _labels(base: Base, adapter: str | None, held: HeldOut) -> Sequence[str]:
    """Return the names of the classes that the adapter's head predicts, and of those that only rows have."""
    head = base.adapters[adapter].head if adapter is not None else None
    if head is None:
        return ()
    return (*(head.labels or map(str, range(head.num_labels))), *_scored(held, []).unknown)


def _with_loss(scored: Scored, base: Base, adapter: str | None) -> Feed:
    """Return the examples that have a loss: those whose classes the head knows."""
    head = base.adapters[adapter].head if adapter is not None else None
    if not scored.unknown or head is None:
        return scored.feed
    known = [
        e for e in scored.feed.examples if max([e.target or 0, *e.parts.get("tags", ())]) < head.num_labels
    ]
    return replace(scored.feed, examples=known)


def _answered(base: Base, held: HeldOut, adapter: str | None) -> list[dict[str, Any]]:
    """Return the first rows with the class, or the tagged words, that the adapter predicts."""
    sources = {example.source for example in _scored(held, []).feed.examples}
    rows = [row for row in held.rows if row.source in sources][:SHOWN]
    if adapter is None or base.adapters[adapter].head is None or not rows:
        return []
    longest = _scored(held, []).feed.batches.max_length
    predicted = answers(base, [row.value[0] for row in rows], [adapter] * len(rows), longest)
    records = []
    for row, text in zip(rows, predicted, strict=True):
        tagged = row.kind == "tags"
        prompt = " ".join(row.value[0]) if tagged else "\n".join(row.asked)
        reference = marked(*row.value) if tagged else str(row.value[1])
        records.append({"prompt": prompt, "references": [reference], "text": text})
    return records


def _scored(held: HeldOut, metrics: Sequence[str]) -> Scored:
    """Return the examples with their stage. Raises DataError if there are none."""
    if held.scored is None or not len(held.scored.feed.examples):
        given = f"no rows could be scored for {', '.join(metrics)}"
        raise DataError(given, "held-out rows", "set data.eval or data.test")
    return held.scored


def _text_scores(
    base: Base, held: HeldOut, names: Sequence[str], progress: Progress, keep: list[dict[str, Any]] | None
) -> dict[str, float]:
    """Generate a text for every case and return the metrics of these names.

    Raises DataError if no row asks.
    """
    asked = cases(held.rows)
    if not asked:
        given = f"no row asks something, for {', '.join(names)}"
        raise DataError(given, "rows that ask something", "set data.eval or data.test")
    texts = _generated(base, asked, held.writing, progress)
    references = [case.references for case in asked]
    if keep is not None:
        keep += [
            {"prompt": case.prompt, "references": case.references, "text": text}
            for case, text in zip(asked, texts, strict=True)
        ]
    scores = {name: TEXT[name](texts, references) for name in names if name in TEXT}
    for name in names:
        if ":" in name:
            scores |= user_scores(name, texts, references, [case.rows for case in asked])
    return scores


def _generated(
    base: Base, asked: Sequence[Case], writing: Mapping[str, Any], progress: Progress
) -> list[str]:
    """Return one text per case."""

    def ended(done: int, total: int) -> None:
        progress("texts", done, total)

    texts = base.generate([case.prompt for case in asked], progress=ended, **writing)
    return [text.strip() for text in texts]
