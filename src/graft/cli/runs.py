"""graft runs: the runs in a folder, the newest first: what they are, how far, how good."""

import csv
import io
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graft.cli.say import after, note, show, show_json, table, talk
from graft.errors import UsageError
from graft.sizes import duration, size
from graft.storage import replace, require_file

if TYPE_CHECKING:
    from graft.runs.records import RunRecord

DAY_S = 86_400
# Columns that a narrow terminal does without, the least missed first.
SPARE = ("size", "stage", "loss", "base", "age", "method")


def add_to(app: typer.Typer) -> None:
    app.command("runs", help="List the runs in a folder: state, loss, scores, age, size.")(runs)


def runs(
    folder: Annotated[Path, typer.Argument(help="Where to look, however deep.")] = Path("runs"),
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Also write the list to this file.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the same facts for programs.")] = False,
) -> None:
    if csv_file is not None:
        require_file(csv_file)
    from graft.runs.records import read_run, runs_below  # late: pydantic, which no --help needs

    found = sorted((read_run(run) for run in runs_below(folder)), key=lambda record: -record.changed)
    if not found:
        raise UsageError(
            f"{folder} has no run in it",
            "a folder that `graft train` wrote, or one above such folders",
            "train one: graft train --model seedling --data seedling:descriptions",
        )
    if csv_file is not None:
        csv_file.parent.mkdir(parents=True, exist_ok=True)
        replace(csv_file, _csv(found).encode())
    if json:
        show_json([_facts(record) for record in found])
    else:
        show(_fitted([_cells(record, folder) for record in found]))
    for record in found:
        for text in record.damage:
            note(f"{record.folder}: {text}")
        if record.holder:
            note(f"{record.folder}: {record.holder} works on it")
    if csv_file is not None:
        talk(f"wrote   {csv_file}")
    stopped = next((record.folder for record in found if record.state == "stopped"), None)
    done = [str(record.folder) for record in found if record.after]
    if len(done) > 1:
        after(f"graft compare {' '.join(done[:2])}" + (f"   (or: graft train {stopped})" if stopped else ""))
    else:
        after(f"graft train {stopped}" if stopped else f"graft chat {found[0].folder}")


def _facts(record: "RunRecord") -> dict[str, Any]:
    """Return a run as JSON values."""
    return {
        "run": str(record.folder),
        **_what(record),
        "state": record.state,
        "step": record.step,
        "of": record.of,
        "loss": record.loss,
        "metric": record.main,
        "before": record.before.get(record.main or ""),
        "after": record.after.get(record.main or ""),
        "scores": {"before": dict(record.before), "after": dict(record.after)},
        "changed": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.changed)),
        "size_bytes": record.size_bytes,
        "holder": record.holder,
        "damage": list(record.damage),
    }


def _what(record: "RunRecord") -> dict[str, str]:
    """Return the base, the method and the stage of a run in words; "?" where its recipe is lost."""
    recipe = record.recipe
    if recipe is None:
        return {"base": "?", "method": "?", "stage": "?"}
    model = recipe.model
    base = Path(model).name if isinstance(model, str) else f"fresh {model.config.get('model_type', 'model')}"
    packed = "" if recipe.quant == "none" else f" {recipe.quant}"
    methods = "+".join(str(method["name"]) for method in recipe.methods) or "of its adapter"
    return {"base": base + packed, "method": methods, "stage": recipe.stage_name}


def _cells(record: "RunRecord", above: Path) -> dict[str, str]:
    """Return the cells of a run's line by their columns.  above: the folder that was looked through."""
    name = str(record.folder.relative_to(above)) if record.folder != above else str(record.folder)
    steps = "" if record.step is None else f" {record.step:,}"
    steps += f" of {record.of:,}" if steps and record.of else ""
    metric = record.main
    score = "-"
    if metric:
        start = f"{record.before[metric]:.4g} → " if metric in record.before else ""
        score = f"{metric} {start}{record.after[metric]:.4g}"
    return {
        "run": name,
        **_what(record),
        "state": record.state if record.state in ("finished", "damaged") else f"{record.state}{steps}",
        "loss": "-" if record.loss is None else f"{record.loss:.4f}",
        "score": score,
        "age": _age(time.time() - record.changed),
        "size": size(record.size_bytes),
    }


def _age(seconds: float) -> str:
    return f"{seconds / DAY_S:.0f} d" if seconds >= 2 * DAY_S else duration(max(0.0, seconds))


def _fitted(rows: Sequence[dict[str, str]]) -> str:
    """Return a table, in a terminal without the columns for which it has no room."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    columns = list(rows[0])
    for spare in ("", *SPARE):
        columns = [name for name in columns if name != spare]
        text = table(columns, [[row[name] for name in columns] for row in rows])
        if max(map(len, text.splitlines())) <= width:
            break
    return text


def _csv(found: "Sequence[RunRecord]") -> str:
    """Return the runs as CSV."""
    text = io.StringIO()
    facts = [_facts(record) for record in found]
    columns = [name for name in facts[0] if name not in ("scores", "damage")]
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(facts)
    return text.getvalue()
