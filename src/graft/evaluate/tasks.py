"""What a model is worth on held-out rows, and the same twice: without and with the adapter, in one table.

Rows that ask the same are one case with several references, so that a text is written once and the metrics that know
several references get all of them.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from graft.data.order import Feed
from graft.data.rows import Row
from graft.errors import DataError
from graft.evaluate.metrics import CLASS, LOSS, NAMES, TEXT, check, user_scores
from graft.evaluate.perplexity import Progress, classes, perplexity, silent

if TYPE_CHECKING:
    from graft.base import Base


@dataclass(frozen=True)
class Case:
    """One prompt (a text or messages), every reference answer to it, and the rows they come from."""

    prompt: str | list[dict[str, Any]]
    references: list[str]
    rows: list[Row]


@dataclass(frozen=True)
class Held:
    """Held-out material.  feed: examples for losses and classes, None where none is wanted.  rows: for written texts.

    writing: keywords of `Base.generate`.
    """

    feed: Feed | None = None
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
    base: "Base",
    held: Held,
    metrics: Sequence[str],
    *,
    adapter: str | None = None,
    progress: Progress = silent,
    keep: list[dict[str, Any]] | None = None,
) -> dict[str, float]:
    """{metric: value} on the held-out material, answered by `adapter` (None: the bare or merged base).

    metrics: names of `graft.evaluate.metrics`, or package.module:function.  progress: called with (what, done, total).
    keep: receives {"prompt", "references", "text"} of every written text.
    """
    check(metrics)
    found: dict[str, float] = {}
    with base.using(adapter):
        if set(metrics) & set(LOSS):
            found |= perplexity(base, _feed(held, metrics), progress)
        if set(metrics) & set(CLASS):
            pairs = classes(base, _feed(held, metrics), progress)
            found |= {name: CLASS[name](*pairs) for name in metrics if name in CLASS}
        written = [name for name in metrics if name in TEXT or ":" in name]
        if written:
            found |= _texts(base, held, written, progress, keep)
    own = [key for key in found if key not in (*NAMES, "tokens")]  # what functions of the user called their numbers
    return {name: found[name] for name in [*(m for m in metrics if m in found), *own]}


@dataclass(frozen=True)
class Table:
    """The same metrics in several columns: {title: {metric: value}}.  texts: prompt, references, each column's text."""

    columns: dict[str, dict[str, float]]
    texts: list[dict[str, Any]]

    def rows(self) -> list[tuple[str, list[float | None]]]:
        """(metric, value in each column; None where it has none)."""
        names = dict.fromkeys(name for column in self.columns.values() for name in column)
        return [(name, [column.get(name) for column in self.columns.values()]) for name in names]

    def lines(self) -> list[str]:
        """The table as aligned text."""
        shown = [(name, ["-" if v is None else f"{v:.4g}" for v in values]) for name, values in self.rows()]
        titles = list(self.columns)
        widths = [max([len(t), *(len(values[i]) for _, values in shown)]) for i, t in enumerate(titles)]
        first = max([6, *(len(name) for name, _ in shown)])
        make = lambda name, cells: "  ".join(
            [name.ljust(first), *(c.rjust(w) for c, w in zip(cells, widths, strict=True))]
        )
        return [make("metric", titles), *(make(name, cells) for name, cells in shown)]


def before_after(
    base: "Base", held: Held, metrics: Sequence[str], *, adapter: str, progress: Progress = silent
) -> Table:
    """The bare base and the adapter on the same material.

    For classes, which a bare base does not give, the first column is the material's most frequent class.
    """
    classify = held.feed is not None and held.feed.stage == "classify"
    before: list[dict[str, Any]] = []
    after: list[dict[str, Any]] = []
    if classify:
        columns = {"majority": majority(held.feed, [m for m in metrics if m in CLASS])}
    else:
        columns = {"before": evaluate(base, held, metrics, adapter=None, progress=progress, keep=before)}
    columns["after"] = evaluate(base, held, metrics, adapter=adapter, progress=progress, keep=after)
    texts = [
        {"prompt": a["prompt"], "references": a["references"], "before": b["text"], "after": a["text"]}
        for b, a in zip(before, after, strict=False)
    ]
    return Table(columns, texts)


def majority(feed: Feed | None, metrics: Sequence[str]) -> dict[str, float]:
    """Class metrics of the answer that is always the most frequent class: what a model has to beat."""
    true = [example.target for example in (feed.examples if feed else [])]
    usual = Counter(true).most_common(1)[0][0]
    return {name: CLASS[name]([usual] * len(true), true) for name in metrics}


def _feed(held: Held, metrics: Sequence[str]) -> Feed:
    if held.feed is None or not len(held.feed.examples):
        raise DataError(f"{', '.join(metrics)} without examples", "held-out rows", "set data.eval or data.test")
    return held.feed


def _texts(
    base: "Base", held: Held, names: Sequence[str], progress: Progress, keep: list[dict[str, Any]] | None
) -> dict[str, float]:
    asked = cases(held.rows)
    if not asked:
        raise DataError(
            f"{', '.join(names)} without prompts and answers", "rows that ask something", "set data.eval or data.test"
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
        keep += [{"prompt": c.prompt, "references": c.references, "text": t} for c, t in zip(asked, texts, strict=True)]
    found = {name: TEXT[name](texts, references) for name in names if name in TEXT}
    for name in names:
        if ":" in name:
            found |= user_scores(name, texts, references, [case.rows for case in asked])
    return found
