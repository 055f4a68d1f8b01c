"""graft train: carry out a recipe; the same command continues a stopped run."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from graft.cli.misuse import option_names
from graft.cli.progress import Progress
from graft.cli.say import after, model_of, painted_verdict, score_table, show, show_json, talk
from graft.cli.wait import begin, is_terminal, waiting
from graft.cli.words import STAGES, WORDS, recipe_of
from graft.runs.trackers import require_trackers
from graft.sizes import MIB
from graft.storage import Lock, locked, require_run_folder

if TYPE_CHECKING:
    from graft.planning.plan import Plan
    from graft.recipe import Recipe
    from graft.recipe.chain import Chain
    from graft.runs.result import RunResult

SMALL = 32 * MIB  # of rows: up to here they are read twice, to find bad ones early


def add_to(app: typer.Typer) -> None:
    help = f"""Train: `graft train recipe.yaml train.lr=1e-4`, or `graft train --model M --data ROWS`.

    Change any key of a recipe by key=value or --key value; --keys lists them. The same command continues a
    stopped run. Stages: {STAGES}."""
    app.command(
        "train",
        help=help,
        short_help="Carry out a recipe; the same command resumes it.",
        context_settings=WORDS,
    )(train)


def train(
    context: typer.Context,
    recipe: Annotated[
        str | None, typer.Argument(help="A recipe or a run's folder, then key=value changes.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Folder, hub id or seedling.")] = None,
    data: Annotated[str | None, typer.Option(help="Rows to learn from: file, folder, seedling:NAME.")] = None,
    method: Annotated[
        str | None, typer.Option(help="A method or preset, for example lora, dora, qlora, full.")
    ] = None,
    output: Annotated[str | None, typer.Option(help="The run's folder.")] = None,
    keys: Annotated[
        bool,
        typer.Option("--keys", help="Print every key with its help, as YAML; stage=NAME: of that stage."),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the whole recipe and stop.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the same facts for programs.")] = False,
) -> None:
    begin("reading the recipe", briefly=True)
    options = {"model": model, "data.train": data, "method": method, "output": output}
    if keys:
        from graft.recipe import read  # late: pydantic, which no --help needs

        given = recipe is not None or context.args or any(value is not None for value in options.values())
        show((recipe_of(recipe, context.args, options, option_names(context)) if given else read({})).yaml())
        return after("graft train RECIPE   (a file with the keys that you change)")
    chosen = recipe_of(recipe, context.args, options, option_names(context))

    from graft.recipe.chain import Chain

    if dry_run:
        show(chosen.documents() if isinstance(chosen, Chain) else chosen.yaml())
        return after("the same command without --dry-run, or with plan instead of train")

    recipes = [*chosen.recipes.values()] if isinstance(chosen, Chain) else [chosen]
    for folder in dict.fromkeys((chosen.output, *(one.output for one in recipes))):
        require_run_folder(Path(folder))
    for one in recipes:
        require_trackers(one)
    with locked(Path(chosen.output)) as lock:  # at once: whoever comes second must not wait for torch
        for one in recipes:
            _check_rows(one)
        if isinstance(chosen, Chain):
            train_chain(chosen, lock, json=json)
        else:
            train_one(chosen, lock, json=json)


def train_one(chosen: "Recipe", lock: Lock, *, json: bool) -> None:
    """Carry out a recipe of one stage.  lock: of its folder."""
    with waiting("planning"):
        from graft.planning.plan import plan  # after recipe and rows are checked: torch costs seconds
        from graft.runs.identity import as_begun
        from graft.runs.run import carry_out
        from graft.stages.stage import stage_of

        stage_of(chosen).check_complete()
        begun = as_begun(chosen)
        cost = plan(begun)
    why = cost.why if begun.dtype == chosen.dtype else "as this run began"
    chosen = chosen.model_copy(update={"dtype": cost.dtype})
    talk(f"dtype   {cost.dtype}: {why}")
    _say_plan(cost)
    if not is_terminal():  # there the observer shows it
        begin(f"loading {model_of(chosen)}", briefly=True)
    with Progress(chosen) as progress:
        result = carry_out(chosen, progress, lock=lock)
    _say_result(result)
    if json:
        show_json(result.facts())
    _say_next(chosen, chosen.output)


def train_chain(chain: "Chain", lock: Lock, *, json: bool) -> None:
    """Carry out a recipe of several stages.  lock: of their common folder."""
    with waiting("planning"):
        from graft.planning.plan import plan  # after recipes and rows are checked: torch costs seconds
        from graft.runs.chain import stages
        from graft.runs.identity import as_begun
        from graft.stages.stage import stage_of

        for name in chain.recipes:
            stage_of(chain.recipes[name]).check_complete()
            cost = plan(as_begun(chain.before(name)))
            _say_plan(cost, f"{name} in {cost.dtype}: ")
    results = []
    *_, last = chain.recipes.values()
    if not is_terminal():  # there the observer shows it
        begin(f"loading {model_of(last)}", briefly=True)
    with Progress(last) as progress:
        for result in stages(chain, progress, lock=lock):
            _say_result(result)
            results.append(result)
    if json:
        show_json([result.facts() for result in results])
    _say_next(last, chain.output)


def _say_plan(cost: "Plan", title: str = "") -> None:
    """Print the memory that a run needs, whether it fits, and how fast it will be.  title: before it."""
    from graft.planning.seconds import NOT_MEASURED

    more = "" if cost.fits else ": `graft plan` shows what would help"
    talk(f"plan    {title}{painted_verdict(cost.verdict)}{more}")
    talk(f"time    {title}{cost.pace or NOT_MEASURED}")


def _say_result(result: "RunResult") -> None:
    """Print the scores of a finished run, and what it wrote."""
    if result.scores:
        talk(score_table(result.scores))
        for line in result.coverage["lines"]:
            talk(f"eval    {line}")
    written = [result.adapter, result.folder / "report.html", *([result.model] if result.model else [])]
    talk(f"{'wrote' if result.trained else 'kept':<7} {'   '.join(map(str, written))}")


def _say_next(recipe: "Recipe", folder: str) -> None:
    """Print what to do with a run's folder.  recipe: of the run that answers from it."""
    from graft.stages.stage import stage_of

    first, second = ("chat", "eval") if stage_of(recipe).writes else ("eval", "compare OTHER")
    after(f"graft {first} {folder}   (or: graft {second} {folder}, graft export {folder} OUT)")


def _check_rows(recipe: "Recipe") -> None:
    """Raise DataError for bad rows before torch is imported, which takes longer than reading them twice."""
    from graft import seedling
    from graft.data import load_rows  # reads files, needs no torch
    from graft.data.layouts import Accepts
    from graft.data.preparation import files_of
    from graft.recipe.stages import stage_card

    data = recipe.data
    if "seedling:" in str([data.train, data.eval, data.test]):  # generated: they are good
        seedling.located(data)
        return
    files = [Path(name) for name in files_of(data)] if data.train else []
    if all(file.exists() for file in files) and sum(file.stat().st_size for file in files) < SMALL:
        accepts = Accepts(recipe.stage_name, stage_card(recipe.stage_name).layouts)
        load_rows(data, accepts)
