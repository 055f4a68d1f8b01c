"""The top of a run's page: what was trained on what, what it brought, what it cost, how to use it."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from graft.recipe.stages import stage_cards
from graft.runs.circumstances import Circumstances, circumstances
from graft.runs.report.curves import is_number
from graft.runs.report.html import bullets, facts, paragraph
from graft.runs.report.words import (
    base_words,
    data_words,
    date_words,
    methods_words,
    place,
    stage_words,
    without_paths,
)
from graft.runs.run_files import RunFiles
from graft.runs.score_words import change, in_figures, metric_of, titled
from graft.sizes import duration, number, size

GAINS = 3  # scores that stand on top
BASELINES = {"majority": "always the most frequent class"}


def summary(run: RunFiles) -> str:
    """Return the top of the page, in HTML."""
    if not run.started:
        return paragraph("This folder holds no run.", "lead")
    known = circumstances(run.timing)
    parts = [paragraph(sentence(run, known.newest), "lead"), gains(run), _tiles(run, known)]
    if told := [without_paths(text) for text in (*run.notes, *known.warnings, *_gaps(run))]:
        parts.append(f'<div class="notes" role="note"><h2>Good to know</h2>{bullets(told)}</div>')
    return "".join([*parts, '<div class="pair">', _use(run), _made(run, known), "</div>"])


def sentence(run: RunFiles, start: Mapping[str, Any]) -> str:
    """Return what was trained on what.  start: what the last start wrote down."""
    recipe, rows, steps = run.recipe, run.data.get("train"), steps_of(run)
    if recipe is None:
        return f"A run of {steps:,} steps. Its recipe.yaml cannot be read."
    counted = f"{rows:,} rows" if isinstance(rows, int) else "rows"
    told = f"{methods_words(recipe)} on {base_words(recipe)}, {stage_words(recipe)} with {counted}"
    told += f" of {data_words(recipe)}" if recipe.data.train else ""
    epochs = next((line["epoch"] for line in reversed(run.metrics) if is_number(line.get("epoch"))), None)
    length = f"{epochs:.3g} {'epoch' if epochs == 1 else 'epochs'}, " if epochs is not None else ""
    told += f": {length}{steps:,} steps of {recipe.train.batch_size} rows."
    trained, whole = start.get("trained"), start.get("parameters")
    if is_number(trained) and is_number(whole) and whole:
        share = f"{100 * trained / whole:.2g} %"
        told += f" {number(trained)} parameters were trained beside {number(whole)} ({share})."
    return told


def steps_of(run: RunFiles) -> int:
    """Return the steps that a run has taken."""
    last = run.finished.get("steps")
    found = (line["step"] for line in reversed(run.metrics) if isinstance(line.get("step"), int))
    return last if isinstance(last, int) else next(found, 0)


def main_metrics(columns: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return the metrics that matter most, in their order: those that can become better.

    The loss is one of them only if there is nothing else.
    """
    names = list(columns["after"]) if "after" in columns else []
    others = [name for name in names if name != "loss"]
    return [name for name in others if metric_of(name).better] or others or names


def gains(run: RunFiles) -> str:
    """Return the first scores before and after, with the change, as cards."""
    columns = run.columns
    scored, of = run.coverage.get("scored"), run.coverage.get("of")
    where = f" on {scored:,} held-out rows" if isinstance(scored, int) else ""
    where += f" of {of:,}" if isinstance(of, int) and of != scored else ""
    before = next((title for title in columns if title != "after"), "")
    cards = [
        _gain(name, columns.get(before, {}).get(name), columns["after"][name], (where, before))
        for name in main_metrics(columns)[:GAINS]
    ]
    return f'<div class="gains">{"".join(cards)}</div>' if cards else ""


def _gain(name: str, before: Any, after: Any, told: tuple[str, str]) -> str:
    """Return the card of one score.  told: on which rows, and what "before" is."""
    where, earlier = told
    title, badge, was = f"{titled(name)}{where}", "", ""
    if is_number(before) and is_number(after):
        words, gain = change(name, before, after)
        kind = {1: " good", -1: " bad", 0: ""}[gain]
        badge = f'<span class="badge{kind}">{escape(words)}</span>'
        was = f'<span class="was">{escape(in_figures(name, before))} <span aria-label="to">→</span></span>'
    now = f'<span class="now">{escape(in_figures(name, after))}</span>'
    beside = BASELINES.get(earlier, earlier)
    note = f'<p class="name">beside: {escape(beside)}</p>' if was and earlier != "before" else ""
    head = f'<p class="name">{escape(title)}</p>'
    return f'<div class="card gain">{head}<p class="values">{was}{now}{badge}</p>{note}</div>'


def _tiles(run: RunFiles, known: Circumstances) -> str:
    recipe, start = run.recipe, known.newest
    counts = stage_cards()[recipe.stage_name].counts if recipe else "tok"
    weights = run.folder / "adapter" / "adapter_model.safetensors"
    trained, whole = start.get("trained"), start.get("parameters")
    held = run.data.get("eval")
    tiles: list[tuple[str, str, str]] = []
    if known.seconds:
        tiles.append(
            (
                "Training time",
                duration(known.seconds),
                f"{known.speed:{',.0f' if known.speed >= 10 else '.2g'}} {counts}/s",
            )
        )
    if known.peak:
        gpu = bool(start.get("machine", {}).get("gpus"))
        tiles.append(("Peak memory", size(known.peak), "of the GPU" if gpu else "of the process"))
    if is_number(trained):
        share = f"{100 * trained / whole:.2g} % of {number(whole)}" if is_number(whole) and whole else ""
        tiles.append(("Parameters trained", number(trained), share))
    if weights.is_file():
        tiles.append(("Adapter", size(weights.stat().st_size), "in adapter/"))
    if isinstance(rows := run.data.get("train"), int):
        tiles.append(("Rows", f"{rows:,}", f"{held:,} held out" if isinstance(held, int) else ""))
    tiles.append(("Steps", f"{steps_of(run):,}", f"of {recipe.train.batch_size} rows" if recipe else ""))
    if recipe is not None:
        stored = "not quantised" if recipe.quant == "none" else f"base stored as {recipe.quant}"
        tiles.append(("Number format", recipe.dtype, stored))
        tiles.append(("Peak learning rate", f"{recipe.train.lr:g}", recipe.train.schedule))
    return f'<dl class="tiles">{"".join(_tile(*tile) for tile in tiles)}</dl>'


def _tile(name: str, value: str, more: str) -> str:
    below = f'<dd class="more">{escape(more)}</dd>' if more else ""
    return f'<div><dt>{escape(name)}</dt><dd class="big">{escape(value)}</dd>{below}</div>'


def _gaps(run: RunFiles) -> list[str]:
    """Return what is not on the page, and why."""
    return [f"Not on this page: {'; '.join(run.absent)}."] if run.absent else []


def _use(run: RunFiles) -> str:
    """Return the commands with which the run is used."""
    if not (run.folder / "adapter").is_dir():
        return ""
    folder = place(run.folder)
    card = stage_cards().get(run.recipe.stage_name) if run.recipe else None
    masked = run.recipe is not None and run.recipe.objective == "masked"
    writes = card is not None and not (card.headed or card.labelled or masked)
    commands = [(f"graft chat {folder}", "talk to it")] if writes else []
    commands += [
        (f"graft eval {folder} --data ROWS", "score it on other rows"),
        (f"graft export {folder} OUT", "for other programs"),
    ]
    width = max(len(command) for command, _ in commands)
    lines = "\n".join(
        f'<span class="pick">{escape(command)}</span>{" " * (width - len(command))}'
        f'  <span class="comment"># {escape(what)}</span>'
        for command, what in commands
    )
    where = paragraph("The adapter is in the folder adapter/, beside this page.", "soft")
    return f'<div class="card"><h2>Use it</h2><pre><code>{lines}</code></pre>{where}</div>'


def _made(run: RunFiles, known: Circumstances) -> str:
    """Return when, with what and where the run was made."""
    start = known.newest
    versions = start.get("versions") or {}
    software = ", ".join(f"{name} {number}" for name, number in versions.items())
    train, data = (run.recipe.train, run.recipe.data) if run.recipe else (None, None)
    seeds = f"{train.seed} for training, {data.seed} for the held-out rows" if train and data else ""
    begun = date_words(known.starts[0].get("time")) if known.starts else ""
    starts = f"; {len(known.starts)} starts" if len(known.starts) > 1 else ""
    told: Sequence[tuple[str, str]] = (
        ("Begun", begun + starts),
        ("Ended", date_words(known.last) or ("" if run.finished else "not yet")),
        ("Software", software),
        ("Machine", machine_words(start.get("machine") or {})),
        ("Seeds", seeds),
    )
    return f'<div class="card"><h2>How it was made</h2>{facts(told)}</div>'


def machine_words(machine: Mapping[str, Any]) -> str:
    """Return a machine in words."""
    gpus = ", ".join(map(str, machine.get("gpus") or ()))
    counts = [(machine.get(name), name) for name in ("cores", "threads")]
    cores = ", ".join(f"{n} {what if n != 1 else what[:-1]}" for n, what in counts if isinstance(n, int))
    parts = [gpus, str(machine.get("processor", "")), cores, str(machine.get("system", ""))]
    return "; ".join(filter(None, parts))
