"""The report.html of a run: what it was, what it brought, its answers, curves, data and settings.

One file that one can send to others: it needs no network and no other file, and holds no private path but
those in the settings. Everything is read from the run's folder.
"""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from graft.recipe.stages import stage_cards
from graft.runs.report.answers import answers, samples
from graft.runs.report.charts import EACH, calibration, charts, lengths
from graft.runs.report.confusion import confusion
from graft.runs.report.curves import Chart, is_number
from graft.runs.report.html import Section, figure, html_page, paragraph, table
from graft.runs.report.rows import data
from graft.runs.report.settings import settings
from graft.runs.report.summary import BASELINES, summary
from graft.runs.report.words import without_paths
from graft.runs.run_files import RunFiles, files_of
from graft.runs.score_words import change, in_figures, metric_of, titled


def report(folder: Path) -> str:
    """Return the page of one run. What is missing or damaged is named on it; damage is told by a notice."""
    run = files_of(folder)
    drawn: list[Chart] = []
    sections = [
        *_results(run, drawn),
        *_answers(run),
        *_curves(run, drawn),
        *_data(run, drawn),
        *([Section("Settings", settings(run.recipe, run.settings))] if run.settings else []),
    ]
    name = folder.resolve().name
    return html_page(name, sections, drawn, kind="Fine-tuning run, by Graft", head=summary(run))


def _results(run: RunFiles, drawn: list[Chart]) -> list[Section]:
    """Return the scores, and what they are about."""
    if not run.columns:
        return []
    curves: Mapping[str, Any] = run.evaluation.get("curves") or {}
    told = [without_paths(str(line)) for line in run.coverage.get("lines") or ()]
    parts = [_scores(run.columns), *(paragraph(line, "soft") for line in told)]
    if points := curves.get("calibration"):
        parts.append(_placed(calibration(points), drawn))
    if counts := curves.get("confusion"):
        parts.append(confusion(counts))
    return [Section("Before and after", "".join(parts))]


def _scores(columns: Mapping[str, Mapping[str, float]]) -> str:
    """Return {column: {metric: value}} as a table, one metric a row, with the change and what it says."""
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    first, last = next(iter(columns.values())), list(columns.values())[-1]
    rows = []
    for name in names:
        values = [in_figures(name, column[name]) if name in column else "" for column in columns.values()]
        both = len(columns) > 1 and is_number(first.get(name)) and is_number(last.get(name))
        moved = change(name, first[name], last[name])[0] if both else ""
        says = f'<span class="says">{escape(metric_of(name).says)}</span>'
        cells = (f'<td class="number">{escape(cell)}</td>' for cell in (*values, moved))
        rows.append(f"<tr><td>{escape(titled(name))}{says}</td>{''.join(cells)}</tr>")
    titles = [BASELINES.get(title, title) for title in columns]
    head = "".join(f'<th class="number">{escape(title)}</th>' for title in (*titles, "change"))
    body = f"<thead><tr><th>metric</th>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f'<div class="scroll"><table>{body}</table></div>'


def _answers(run: RunFiles) -> list[Section]:
    """Return the answers to held-out rows, and those to the sample prompts while it trained."""
    sections = []
    if texts := run.evaluation.get("texts"):
        sections.append(Section("Answers", answers(texts)))
    if run.samples:
        prompts: Sequence[str] = run.recipe.train.samples if run.recipe else ()
        sections.append(Section("Samples while it trained", samples(run.samples, prompts)))
    return sections


def _curves(run: RunFiles, drawn: list[Chart]) -> list[Section]:
    """Return the curves over the steps, and their numbers as a table."""
    counts = stage_cards()[run.recipe.stage_name].counts if run.recipe else "tok"
    found = charts(run.metrics, run.timing, counts)
    if not found:
        return []
    start = len(drawn)
    drawn += found
    places = "".join(figure(start + i, chart) for i, chart in enumerate(found))
    hint = paragraph("Drag over a curve to enlarge a part of all of them; a double click shows all.", "soft")
    numbers = f"<details data-fold open><summary>The numbers</summary>{_numbers(found)}</details>"
    return [Section("Curves", f'{hint}<div class="charts">{places}</div>{numbers}')]


def _numbers(found: Sequence[Chart]) -> str:
    """Return the first, lowest, highest and last value of every curve, where nothing is drawn."""
    curves: dict[str, Sequence[float]] = {}
    for curve in (curve for chart in found for curve in chart.curves):
        curves.setdefault(curve.name.removesuffix(EACH), curve.y)  # the points come before their trend
    rows = [
        (name, *(f"{value:.4g}" for value in (y[0], min(y), max(y), y[-1]))) for name, y in curves.items()
    ]
    return table(rows, ("", "first", "lowest", "highest", "last"), numbers=(1, 2, 3, 4))


def _data(run: RunFiles, drawn: list[Chart]) -> list[Section]:
    """Return what was read and learnt."""
    if not run.data:
        return []
    histogram = run.data.get("histogram")
    place = _placed(lengths(histogram), drawn) if histogram else ""
    return [Section("Data", data(run.data, place))]


def _placed(chart: Chart, drawn: list[Chart]) -> str:
    """Add a chart to those of the page, and return its place."""
    drawn.append(chart)
    return f'<div class="charts">{figure(len(drawn) - 1, chart)}</div>'
