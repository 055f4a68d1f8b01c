"""graft plan: print what a run will hold in memory, before it starts."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from graft.cli.say import after, show, show_json
from graft.cli.words import WORDS, recipe_of
from graft.sizes import size

if TYPE_CHECKING:
    from graft.planning.estimate import Plan
    from graft.recipe import Recipe


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
    fit: Annotated[
        bool, typer.Option("--fit", help="Name the largest of the usual models that this run fits, too.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the same facts for programs.")] = False,
) -> None:
    chosen = recipe_of(recipe, context.args, {"model": model, "data.train": data, "method": method})

    from graft.recipe.chain import Chain

    if isinstance(chosen, Chain):
        plans = {name: _planned(chosen.before(name)) for name in chosen.recipes}
        show_json([{"stage": name, **p.facts()} for name, p in plans.items()]) if json else _show(plans)
    else:
        planned = _planned(chosen)
        fitting = _fitting(chosen) if fit else {}
        show_json(planned.facts() | fitting) if json else show(str(planned))
        if fit and not json:
            show(f"model    {fitting['largest_model'] or 'none of the usual ones'}, as the largest")
    after(f"graft train {shlex.join(word for word in sys.argv[2:] if word != '--json')}")


def _planned(chosen: "Recipe") -> "Plan":
    """Return the plan of a recipe; one that is known needs no torch, whose import costs seconds."""
    from graft.planning.kept import kept_plan

    if chosen.dtype == "auto" and (Path(chosen.output) / "recipe.yaml").exists():
        from graft.runs.identity import as_begun

        chosen = as_begun(chosen)
    known = kept_plan(chosen)
    if known is not None:
        return known
    from graft.planning import plan as planning

    return planning.plan(chosen)


def _fitting(chosen: "Recipe") -> dict[str, str | None]:
    """Return the largest of the usual models with which the run would fit."""
    from graft.planning.usual import largest_model

    return {"largest_model": largest_model(chosen)}


def _show(plans: "dict[str, Plan]") -> None:
    """Print the plan of every stage, then which needs the most."""
    for number, (name, planned) in enumerate(plans.items(), 1):
        show(f"stage {number} of {len(plans)}   {name}\n{planned}\n")
    name, largest = max(plans.items(), key=lambda item: item[1].needs)
    verdict = "all fit" if all(p.fits for p in plans.values()) else "DOES NOT FIT"
    show(f"most     stage {name}: peak {size(largest.peak)} of {size(largest.available)}: {verdict}")
