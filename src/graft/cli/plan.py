"""graft plan: what a run will cost, before it costs anything."""

import shlex
import sys
from typing import Annotated

import typer

from graft.cli.say import after, show, show_json
from graft.cli.words import WORDS, recipe_of


def add_to(app: typer.Typer) -> None:
    help = "Say what a run costs in memory, and whether it fits."
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
    json: Annotated[bool, typer.Option("--json", help="The same facts for programs.")] = False,
) -> None:
    chosen = recipe_of(recipe, context.args, {"model": model, "data.train": data, "method": method})

    from graft.planning.plan import (
        plan as predict,
    )  # after the recipe is known to be sound: torch costs seconds

    predicted = predict(chosen)
    show_json(predicted.facts()) if json else show(str(predicted))
    after(f"graft train {shlex.join(word for word in sys.argv[2:] if word != '--json')}")
