"""graft plan: print what a run will hold in memory, before it starts."""

import shlex
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from graft.cli.say import after, show, show_json
from graft.cli.words import WORDS, recipe_of
from graft.sizes import size

if TYPE_CHECKING:
    from graft.planning.plan import Plan


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
    from graft.recipe.chain import Chain
    from graft.runs.identity import as_begun

    if isinstance(chosen, Chain):
        plans = {name: planning.plan(as_begun(chosen.before(name))) for name in chosen.recipes}
        show_json([{"stage": name, **p.facts()} for name, p in plans.items()]) if json else _show(plans)
    else:
        planned = planning.plan(as_begun(chosen))
        show_json(planned.facts()) if json else show(str(planned))
    after(f"graft train {shlex.join(word for word in sys.argv[2:] if word != '--json')}")


def _show(plans: "dict[str, Plan]") -> None:
    """Print the plan of every stage, then which needs the most."""
    for number, (name, planned) in enumerate(plans.items(), 1):
        show(f"stage {number} of {len(plans)}   {name}\n{planned}\n")
    name, largest = max(plans.items(), key=lambda item: item[1].needs)
    verdict = "all fit" if all(p.fits for p in plans.values()) else "DOES NOT FIT"
    show(f"most     stage {name}: peak {size(largest.peak)} of {size(largest.available)}: {verdict}")
