"""graft plan: print what a run will hold in memory, before it starts."""

import shlex
import sys
from typing import Annotated

import typer

from graft.cli.say import after, show, show_json
from graft.cli.words import WORDS, recipe_of


def add_to(app: typer.Typer) -> None:
    help = "Print how much memory a run needs, and whether it fits."
    app.command("plan", help=help, context_settings=WORDS)(plan)


def plan(
    context: typer.Context,
    recipe: Annotated[
        str | None, typer.Argument(help="A recipe or a run's folder, then key=value changes.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Folder, hub id or seedling.")] = None,
    data: Annotated[str | None, typer.Option(help="Rows to learn from.")] = None,
    method: Annotated[
        str | None, typer.Option(help="A method or preset, for example lora, qlora, full.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the same facts for programs.")] = False,
) -> None:
    chosen = recipe_of(recipe, context.args, {"model": model, "data.train": data, "method": method})

    from graft.planning import plan as planning  # after the recipe is checked: torch costs seconds
    from graft.runs.identity import as_begun

    planned = planning.plan(as_begun(chosen))
    show_json(planned.facts()) if json else show(str(planned))
    after(f"graft train {shlex.join(word for word in sys.argv[2:] if word != '--json')}")
