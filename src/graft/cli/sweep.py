"""graft sweep: one recipe with every combination of some settings; the same command continues it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graft.cli.progress import Progress
from graft.cli.say import after, show, show_json, talk
from graft.cli.score_tables import comparison_text
from graft.cli.words import WORDS, separated
from graft.errors import UsageError
from graft.sizes import size

if TYPE_CHECKING:
    from graft.recipe import Recipe
    from graft.runs.sweep import Sweep, Work


def add_to(app: typer.Typer) -> None:
    help = """Train every combination: `graft sweep recipe.yaml method=lora,ia3 train.seed=0,1`.

    A key with several values differs between the runs; one with a single value changes all. A value with a
    comma stands in quotes, a list in brackets is one value. The same command continues a stopped sweep."""
    app.command(
        "sweep",
        help=help,
        short_help="Train with every combination of settings, in one table.",
        context_settings=WORDS,
    )(sweep)


def sweep(
    context: typer.Context,
    recipe: Annotated[
        str | None, typer.Argument(help="A recipe or a run's folder, then key=value,value words.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Folder, hub id or seedling, of all runs.")] = None,
    data: Annotated[str | None, typer.Option(help="Rows to learn from: file, folder, seedling:NAME.")] = None,
    method: Annotated[str | None, typer.Option(help="Methods between commas, for example lora,ia3.")] = None,
    out: Annotated[Path | None, typer.Option(help="The folder of all runs; else runs/NAME-sweep.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the runs and stop.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the same facts for programs.")] = False,
) -> None:
    options = {"model": model, "data.train": data, "method": method}
    chosen = [f"{key}={value}" for key, value in options.items() if value is not None]
    planned = _read([*chosen, *([recipe] if recipe is not None else []), *context.args], out)
    names = [*planned.recipes]
    talk(f"sweep   {len(names)} runs in {planned.folder}: {', '.join(planned.grid)} differ")
    if dry_run:
        show("\n".join(names))
        return after("the same command without --dry-run")

    from graft.runs.sweep import begun  # after the recipes are checked: torch costs seconds

    with begun(planned) as work:
        _plan_largest(planned, work)
        shown = set[str]()
        for number, name in enumerate(work.names, 1):
            talk(f"run     {number} of {len(work.names)}   {name}")
            with _OneOfMany(planned.recipes[name], shown) as progress:
                work.carry_out(name, progress)
            _say_outcome(work, name)
    result = work.result()
    if json:
        show_json(result.facts())
    elif result.table.lines:
        show(comparison_text(result.table))
    for text in result.table.warnings:
        talk(f"warning {text}")
    talk(f"wrote   {planned.folder / 'sweep.csv'}   {planned.folder / 'sweep.json'}")
    _end(planned, work)


def _read(words: list[str], out: Path | None) -> "Sweep":
    """Return the runs that a command line means, and print the notices of their recipes."""
    from graft.runs.grid import values_in
    from graft.runs.sweep import read_sweep

    source, changes = separated(words)
    grid: dict[str, list[Any]] = {}
    shared: list[str] = []
    for word in changes:
        key, equals, text = word.partition("=")
        values = values_in(text) if equals else []
        if len(values) > 1:
            grid[key] = values
        else:
            shared.append(word)
    if source is None and not any(word.startswith("data.train=") for word in changes):
        raise UsageError(
            "no recipe is given",
            "a recipe.yaml, or --model and --data",
            "start from a file in recipes/, or from `graft train --keys`",
        )
    notices: list[str] = []
    planned = read_sweep(source or {}, grid, output=out, overrides=shared, notices=notices)
    for text in notices:
        talk(f"note    {text}")
    return planned


class _OneOfMany(Progress):
    """Prints the progress of a run whose line stands there already.

    shown: texts of the data reports of the runs before it: equal ones are not shown again.
    """

    def __init__(self, recipe: "Recipe", shown: set[str]) -> None:
        super().__init__(recipe)
        self._shown = shown

    def stage(self, *facts: Any) -> None:
        pass

    def data(self, report: Any) -> None:
        told = repr(report.json())
        if told not in self._shown:
            self._shown.add(told)
            super().data(report)


def _plan_largest(planned: "Sweep", work: "Work") -> None:
    """Print the memory of the run that needs the most."""
    from graft.planning.plan import plan
    from graft.runs.identity import as_begun

    plans, seen = {}, set()
    for name, recipe in planned.recipes.items():
        train = recipe.train.model_copy(update={"seed": 0, "lr": 1.0, "epochs": 1.0, "max_steps": 1})
        alike = recipe.model_copy(update={"output": "", "train": train}).yaml()  # these need as much memory
        if name not in work.failed and alike not in seen:
            seen.add(alike)
            plans[name] = plan(as_begun(recipe))
    if plans:
        name, most = max(plans.items(), key=lambda item: item[1].needs)
        verdict = "fits" if most.fits else "DOES NOT FIT: `graft plan` shows what would help"
        peak = f"peak {size(most.peak)} of {size(most.available)} on {most.device}"
        talk(f"plan    the largest is {name}: {peak}: {verdict}")


def _say_outcome(work: "Work", name: str) -> None:
    """Print what a run wrote, or why it failed."""
    if (result := work.runs.get(name)) is not None:
        talk(f"{'wrote' if result.trained else 'kept':<7} {result.folder}")
        return
    talk(f"failed  {name}: {work.failed[name]}")


def _end(planned: "Sweep", work: "Work") -> None:
    """Name the runs that failed, and what to do next. Exits with 1 if any failed."""
    from graft.runs.table import best

    chosen = best(work.result().table)
    place = planned.folder / chosen if chosen else planned.folder
    for name in work.failed:
        talk(f"failed  {name}")
    if work.failed:
        if work.tracebacks:
            file = planned.folder / "failed.txt"
            file.write_text("\n".join(work.tracebacks.values()), encoding="utf-8", errors="backslashreplace")
            talk(f"wrote   {file}: report it, it is a defect of graft")
        after(f"graft train {planned.folder / next(iter(work.failed))}   (alone, for its whole error)")
        raise typer.Exit(1)
    after(f"graft chat {place}   (or: graft compare {planned.folder} --scores, graft eval {place})")
