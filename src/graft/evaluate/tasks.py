"""What a model is worth on held-out rows, and the same twice: without and with the adapter, in one table.

Rows that ask the same are one case with several references, so that a text is written once and the metrics that know
several references get all of them.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from graft.base.base import Base
from graft.data.encode import IGNORED
from graft.data.feed import Feed
from graft.data.rows import Row
from graft.data.tags import marked
from graft.errors import DataError
from graft.evaluate.answers import answers
from graft.evaluate.losses import Progress, classes, losses, silent
from graft.evaluate.metrics import CLASS, LOSS, TEXT, check, class_scores, user_scores
from graft.stages.stage import Stage

SHOWN = 20  # rows whose classes are shown beside the scores


@dataclass(frozen=True)
class Case:
    """One prompt (a text or messages), every reference answer to it, and the rows they come from."""

    prompt: str | list[dict[str, Any]]
    references: list[str]
    rows: list[Row]


@dataclass(frozen=True)
class Held:
    """Held-out material.

    feed, stage: examples and what they are used for; None where only texts are wanted.  rows: for written texts.
    writing: keywords of `Base.generate`.
    """

    feed: Feed | None = None
    stage: Stage | None = None
    rows: Sequence[Row] = ()
    writing: Mapping[str, Any] = field(default_factory=dict)


def cases(rows: Sequence[Row]) -> list[Case]:
    """Prompts with their references, in order of first appearance; rows that answer nothing are left out."""
    grouped: dict[str, Case] = {}
    for row in rows:
        if row.kind == "pair":
            prompt, answer = row.value
        elif row.kind == "chat" and row.value[-1]["role"] == "assistant":
            prompt, answer = row.value[:-1], row.value[-1]["content"]
        else:
            continue
        case = grouped.setdefault(json.dumps([prompt, row.tools], sort_keys=True), Case(prompt, [], []))
        case.references.append(answer.strip())
        case.rows.append(row)
    return list(grouped.values())


def evaluate(
    base: Base,
    held: Held,
    metrics: Sequence[str],
    *,
    adapter: str | None = None,
    progress: Progress = silent,
    keep: list[dict[str, Any]] | None = None,
) -> dict[str, float]:
    """Return {metric: value} on the held-out material, answered by `adapter` (None: the bare or merged base).

    metrics: names of `evaluate.metrics` or of the stage, or package.module:function.  progress: called with (what,
    done, total).  keep: receives {"prompt", "references", "text"} of every written text, and of the first SHOWN rows
    with classes.
    """
    stage = held.stage
    by_loss = {*LOSS, *(stage.metrics if stage is not None and not stage.labelled else ())}
    check(metrics, by_loss)
    scores: dict[str, float] = {}
    texts: dict[str, float] = {}
    with base.using(adapter):
        if set(metrics) & by_loss:
            scores |= losses(base, *_material(held, metrics), progress)
        if set(metrics) & set(CLASS) - by_loss:
            feed, _ = _material(held, metrics)
            scores |= class_scores(metrics, *classes(base, feed, progress), _labels(base, adapter))
            if keep is not None:
                keep += _answered(base, held, adapter)
        written = [name for name in metrics if name in TEXT or ":" in name]
        if written:
            texts = _texts(base, held, written, progress, keep)
    scores |= texts
    # A function of the user may return several numbers, under names of its own.
    return {name: scores[name] for name in metrics if name in scores} | texts


@dataclass(frozen=True)
class Table:
    """The same metrics in several columns: {title: {metric: value}}.  texts: prompt, references, each column's text."""

    columns: dict[str, dict[str, float]]
    texts: list[dict[str, Any]]

    def rows(self) -> list[tuple[str, list[float | None]]]:
        """(metric, value in each column; None where it has none)."""
        names = dict.fromkeys(name for column in self.columns.values() for name in column)
        return [(name, [column.get(name) for column in self.columns.values()]) for name in names]


def before_after(
    base: Base, held: Held, metrics: Sequence[str], *, adapter: str, progress: Progress = silent
) -> Table:
    """The bare base and the adapter on the same material.

    For classes, which a bare base does not give, the first column is the material's most frequent class.
    """
    labelled = held.stage is not None and held.stage.labelled
    before: list[dict[str, Any]] = []
    after: list[dict[str, Any]] = []
    if labelled:
        columns = {"majority": majority(_material(held, metrics)[0], metrics, _labels(base, adapter))}
    else:
        columns = {"before": evaluate(base, held, metrics, adapter=None, progress=progress, keep=before)}
    columns["after"] = evaluate(base, held, metrics, adapter=adapter, progress=progress, keep=after)
    earlier = [{"before": b["text"]} for b in before] or [{}] * len(after)
    texts = [
        {"prompt": a["prompt"], "references": a["references"], **e, "after": a["text"]}
        for a, e in zip(after, earlier, strict=True)
    ]
    return Table(columns, texts)


def majority(feed: Feed, metrics: Sequence[str], labels: Sequence[str] = ()) -> dict[str, float]:
    """Class metrics of the answer that is always the most frequent class: what a model has to beat."""
    true: list[Any] = []
    for example in feed.examples:
        tags = example.parts.get("tags")
        true.append(example.target if tags is None else [tag for tag in tags if tag != IGNORED])
    tagged = isinstance(true[0], list)
    usual = Counter(chain(*true) if tagged else true).most_common(1)[0][0]
    told = [[usual] * len(row) for row in true] if tagged else [usual] * len(true)
    return class_scores(metrics, told, true, labels)


def _labels(base: Base, adapter: str | None) -> Sequence[str]:
    """Names of the classes that the adapter's head knows."""
    head = base.adapters[adapter].head if adapter is not None else None
    return head.labels if head is not None else ()


def _answered(base: Base, held: Held, adapter: str | None) -> list[dict[str, Any]]:
    """The first rows with the class, or the tagged words, that the adapter answers."""
    scored = {example.source for example in _material(held, [])[0].examples}
    rows = [row for row in held.rows if row.source in scored][:SHOWN]
    if adapter is None or base.adapters[adapter].head is None or not rows:
        return []
    told = answers(base, [row.value[0] for row in rows], [adapter] * len(rows))
    right = [marked(*row.value) if row.kind == "tags" else str(row.value[1]) for row in rows]
    asked = [" ".join(row.value[0]) if row.kind == "tags" else row.value[0] for row in rows]
    return [{"prompt": p, "references": [r], "text": t} for p, r, t in zip(asked, right, told, strict=True)]


def _material(held: Held, metrics: Sequence[str]) -> tuple[Feed, Stage]:
    """Return the examples and their stage. Raises DataError where there are none."""
    if held.feed is None or held.stage is None or not len(held.feed.examples):
        raise DataError(
            f"{', '.join(metrics)} without examples", "held-out rows", "set data.eval or data.test"
        )
    return held.feed, held.stage


def _texts(
    base: Base, held: Held, names: Sequence[str], progress: Progress, keep: list[dict[str, Any]] | None
) -> dict[str, float]:
    asked = cases(held.rows)
    if not asked:
        raise DataError(
            f"{', '.join(names)} without prompts and answers",
            "rows that ask something",
            "set data.eval or data.test",
        )
    texts, writing = [""] * len(asked), dict(held.writing)
    # Slices of like length, longest first, as `generate` makes them: one call each, so that progress can be shown.
    order = sorted(range(len(asked)), key=lambda i: -len(str(asked[i].prompt)))
    size = 4 * writing.get("batch_size", 8)
    for start in range(0, len(order), size):
        part = order[start : start + size]
        for i, text in zip(part, base.generate([asked[i].prompt for i in part], **writing), strict=True):
            texts[i] = text.strip()
        progress("texts", min(start + size, len(order)), len(order))
    references = [case.references for case in asked]
    if keep is not None:
        keep += [
            {"prompt": c.prompt, "references": c.references, "text": t}
            for c, t in zip(asked, texts, strict=True)
        ]
    scores = {name: TEXT[name](texts, references) for name in names if name in TEXT}
    for name in names:
        if ":" in name:
            scores |= user_scores(name, texts, references, [case.rows for case in asked])
    return scores
