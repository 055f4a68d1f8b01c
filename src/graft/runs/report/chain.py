"""The report.html of a chain: its stages in a table, each with a link to the page of its own run."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from graft.recipe.chain import stages_in
from graft.runs.circumstances import circumstances
from graft.runs.report.html import Section, html_page, paragraph, verbatim
from graft.runs.report.summary import gains, main_metrics, sentence, steps_of
from graft.runs.report.words import place
from graft.runs.run_files import RunFiles, files_of
from graft.runs.score_words import in_figures, titled
from graft.sizes import duration

HEADER = ("stage", "steps", "time", "metric", "before", "after", "")


def chain_report(folder: Path) -> str:
    """Return the page of a chain, as far as its stages have come."""
    runs = [files_of(stage) for stage in stages_in(folder) if (stage / "recipe.yaml").exists()]
    done = [run for run in runs if run.finished]
    last = f"<h2>After the last stage, {escape(done[-1].folder.name)}</h2>{gains(done[-1])}" if done else ""
    of = len(stages_in(folder))
    lead = paragraph(f"{of} stages one after the other, {len(done)} of them finished.", "lead")
    command = f'<pre><code><span class="pick">graft chat {escape(place(folder))}</span></code></pre>'
    parts = [Section("Stages", "".join([_table(runs), *map(_told, runs)]))]
    if file := (folder / "recipe.yaml").read_text(encoding="utf-8"):
        parts.append(Section("Settings", verbatim(file)))
    head = lead + last + (f'<div class="card"><h2>Use it</h2>{command}</div>' if done else "")
    return html_page(folder.resolve().name, parts, kind="Chain of fine-tuning runs, by Graft", head=head)


def _table(runs: Sequence[RunFiles]) -> str:
    """Return a row for each stage."""
    head = "".join(f"<th>{escape(name)}</th>" for name in HEADER)
    rows = "".join(f"<tr>{''.join(_cells(run))}</tr>" for run in runs)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _cells(run: RunFiles) -> list[str]:
    name, seconds = run.folder.name, circumstances(run.timing).seconds
    cells = [name, f"{steps_of(run):,}", duration(seconds) if seconds else "", *_score(run)]
    link = f'<a href="{escape(name)}/report.html">its page</a>' if run.finished else "not finished"
    return [*(f"<td>{escape(cell)}</td>" for cell in cells), f"<td>{link}</td>"]


def _score(run: RunFiles) -> tuple[str, str, str]:
    """Return the metric that matters most, with its values before and after."""
    metrics = main_metrics(run.columns)
    if not metrics:
        return "", "", ""
    metric, earlier = metrics[0], next(iter(run.columns.values()))
    before = in_figures(metric, earlier[metric]) if metric in earlier and len(run.columns) > 1 else ""
    return titled(metric), before, in_figures(metric, run.columns["after"][metric])


def _told(run: RunFiles) -> str:
    """Return what was trained in a stage."""
    start = circumstances(run.timing).newest
    return f"<h3>{escape(run.folder.name)}</h3>{paragraph(sentence(run, start))}"
