"""The data of a run on its page: what was read, what became of it, and what the model saw."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from graft.data import DataReport
from graft.runs.report.html import bullets, facts, paragraph, shortened, table
from graft.runs.report.words import private, without_paths

REJECTS = 10  # rows that a page names
CHIPS = 60  # names of classes that a page lists
SAMPLE = 3000  # characters of a sample row


def data(report: Mapping[str, Any], figure: str = "") -> str:
    """Return what a run's data report says, in HTML.

    report: as data_report.json holds it.  figure: the chart of the lengths.
    """
    parts = [paragraph(_read(report)), _counts(report)]
    if told := _notes(report):
        parts.append(bullets([without_paths(text) for text in told]))
    if report.get("rejected"):
        parts += ["<h3>Rows that were left out</h3>", _rejected(report)]
    if labels := report.get("labels"):
        parts += [f"<h3>{len(labels)} classes</h3>", _chips([str(label) for label in labels])]
    if figure:
        parts.append(figure)
    if samples := report.get("samples"):
        parts += ["<h3>What the model saw</h3>", paragraph("What it learns to write is marked.", "soft")]
        shown = "".join(_sample(sample) for sample in samples if isinstance(sample, dict))
        parts.append(f'<div class="answers">{shown}</div>')
    return "".join(parts)


def _notes(report: Mapping[str, Any]) -> list[str]:
    """Return what the report says of itself; nothing for one of another Graft, which is not read the same."""
    fields = {key: value for key, value in report.items() if key in DataReport.__dataclass_fields__}
    try:
        return DataReport.from_json({"rejects": [], **fields}).notes()
    except (TypeError, KeyError, AttributeError, ValueError):
        return []


def _read(report: Mapping[str, Any]) -> str:
    """Return how many rows there were, and what became of them."""
    read, train, held = (_count(report, name) for name in ("read", "train", "eval"))
    files = [private(str(name)) for name in report.get("files") or ()]
    named = ", ".join(files) if len(files) <= 3 else f"{len(files)} files"
    told = f"{read:,} rows were read{f' from {named}' if named else ''}: "
    parts = [f"{train:,} to learn from", f"{held:,} held out"]
    rejected, beyond = sum((report.get("rejected") or {}).values()), _count(report, "beyond_limit")
    parts += [f"{rejected:,} left out because they cannot be used"] if rejected else []
    parts += [f"{beyond:,} beyond data.limit"] if beyond else []
    return told + ", ".join(parts) + "."


def _counts(report: Mapping[str, Any]) -> str:
    tokens, learnt = _count(report, "tokens"), _count(report, "tokens_learnt")
    lengths = report.get("lengths") or {}
    names = {"50": "median", "90": "90 % up to", "99": "99 % up to", "100": "longest"}
    told = ", ".join(f"{name} {lengths[key]:,}" for key, name in names.items() if key in lengths)
    limit = f"; limit {report['max_length']:,}" if report.get("max_length") else ""
    cut, places = _count(report, "cut"), ", ".join(map(private, report.get("cut_sources") or ()))
    share = f"{learnt:,} of them are learnt ({learnt / tokens:.0%})" if tokens and learnt else ""
    return facts(
        [
            ("Examples", f"{_count(report, 'examples'):,}"),
            ("Tokens", ", ".join(filter(None, [f"{tokens:,}", share]))),
            ("Length in tokens", told + limit if told else ""),
            ("Cut to the limit", f"{cut:,} rows, first {places}" if cut else "none"),
        ]
    )


def _rejected(report: Mapping[str, Any]) -> str:
    """Return the reasons with their counts, and the first rows by place."""
    reasons = [(reason, f"{count:,}") for reason, count in report["rejected"].items()]
    counts = table(reasons, ("reason", "rows"), numbers=(1,))
    rejects: Sequence[Mapping[str, Any]] = report.get("rejects") or ()
    rows = [
        (
            private(str(reject.get("source", ""))),
            *(str(reject.get(key, "")) for key in ("reason", "detail", "remedy")),
        )
        for reject in rejects[:REJECTS]
    ]
    more = len(rejects) - len(rows)
    rest = paragraph(f"{more:,} more are listed in rejected.jsonl.", "soft") if more > 0 else ""
    return counts + (table(rows, ("place", "reason", "what is wrong", "what to do")) + rest if rows else "")


def _chips(names: Sequence[str]) -> str:
    shown = [*names[:CHIPS], *([f"{len(names) - CHIPS} more"] if len(names) > CHIPS else [])]
    return f'<ul class="chips">{"".join(f"<li>{escape(name)}</li>" for name in shown)}</ul>'


def _sample(sample: Mapping[str, Any]) -> str:
    """Return a row as the model sees it, with the part that is learnt marked."""
    painted, room = [], SAMPLE
    for text, learnt in sample.get("pieces") or ():
        shown = escape(shortened(str(text), room)) if room else ""
        room = max(0, room - len(text))
        painted.append(f'<mark class="learnt">{shown}</mark>' if learnt and shown else shown)
    source = f"<h3>{escape(private(str(sample.get('source', ''))))}</h3>"
    return f'<article class="answer">{source}<div class="text" dir="auto">{"".join(painted)}</div></article>'


def _count(report: Mapping[str, Any], name: str) -> int:
    value = report.get(name)
    return value if isinstance(value, int) else 0
