"""The report.html of a run: curves, scores, data, samples and settings on one page that needs no network.

Everything is read from the run's folder.
"""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from graft.errors import UsageError, notice
from graft.recipe import read
from graft.runs.charts import calibration, charts
from graft.runs.hear import kept_notes
from graft.runs.html_page import chart_section, folded, html_page, section, table, texts, verbatim
from graft.runs.result import recorded_scores
from graft.runs.samples import by_step, spread
from graft.training.log import read_lines


def report(folder: Path) -> str:
    """Return the page of one run. What is missing or damaged is left out; damage is told by a notice."""
    metrics = _lines(folder / "metrics.jsonl")
    timing = _lines(folder / "timing.jsonl")
    drawn = charts(metrics, timing)
    evaluation = recorded_scores(folder)
    columns = evaluation.get("columns", {})
    scores = [section("Before and after", _scores(columns))] if columns else []
    if "calibration" in evaluation.get("curves", {}):
        drawn.append(calibration(evaluation["curves"]["calibration"]))
    notes = kept_notes(folder / "notes.json")
    told = [section("Notes", table([(text,) for text in notes]))] if notes else []
    sections = scores + told + [chart_section(index, chart) for index, chart in enumerate(drawn)]
    if evaluation.get("texts"):
        sections.append(section("Answers", _answers(evaluation["texts"])))
    sections += _samples(folder)
    if data := _facts(folder / "data_report.json"):
        sections.append(section("Data", table([(key, _plain(value)) for key, value in data.items()])))
    if settings := _text(folder / "recipe.yaml"):
        sections.append(section("Settings", verbatim(settings)))
    return html_page(f"graft run {folder.name}", sections)


def _samples(folder: Path) -> list[str]:
    """Return the answers to the sample prompts: a table of prompts and steps where there are several."""
    text = _text(folder / "samples.md")
    if not text:
        return []
    prompts: Sequence[str] = ()
    with contextlib.suppress(UsageError):  # missing or damaged
        prompts = read(folder / "recipe.yaml").train.samples
    found = by_step(text, prompts) if prompts else {}
    if len(found) < 2:
        return [section("Samples", verbatim(text))]
    steps = spread(list(found))
    rows = [(prompt, *(found[step][place] for step in steps)) for place, prompt in enumerate(prompts)]
    told = texts(rows, ("prompt", *(f"step {step}" for step in steps)))
    if len(steps) < len(found):
        told += folded(f"all {len(found)} evaluations", verbatim(text))
    return [section("Samples over time", told)]


def _scores(columns: dict[str, dict[str, Any]]) -> str:
    """Return {column: {metric: value}} as a table, one metric a row."""
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    rows = [(name, *(_plain(column.get(name, "")) for column in columns.values())) for name in names]
    return table(rows, ("metric", *columns))


def _answers(answers: Sequence[dict[str, Any]]) -> str:
    """Return the texts of an evaluation as a table."""
    return table([[_plain(value) for value in text.values()] for text in answers], [*answers[0]])


def _plain(value: Any) -> str:
    """Return a JSON value as text: numbers with four digits."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _facts(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; an empty one, with a notice, if it is damaged."""
    try:
        facts = json.loads(_text(path) or "{}")
        if isinstance(facts, dict):
            return facts
    except (ValueError, RecursionError):
        pass
    notice(f"{path} is damaged: the report goes without it")
    return {}


def _lines(path: Path) -> list[dict[str, Any]]:
    records, bad = read_lines(path)
    if bad:
        notice(f"{bad:,} lines of {path} cannot be read: the report goes without them")
    return records
