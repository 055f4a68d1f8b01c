"""graft plan: print what a run will hold in memory, before it starts."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from graft.cli.misuse import option_names
from graft.cli.say import after, model_of, painted_verdict, show, show_json
from graft.cli.wait import begin, waiting
from graft.cli.words import WORDS, recipe_of
from graft.sizes import size

if TYPE_CHECKING:
    from graft.planning.estimate import Plan
    from graft.recipe import Recipe
    from graft.recipe.chain import Chain


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
        str | None, typer.Option(help="A method or preset, for example lora, dora, qlora, full.")
    ] = None,
    fit: Annotated[
        bool, typer.Option("--fit", help="Name the largest of the usual models that this run fits, too.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the same facts for programs.")] = False,
) -> None:
    begin("reading the recipe", briefly=True)
    options = {"model": model, "data.train": data, "method": method}
    chosen = recipe_of(recipe, context.args, options, option_names(context))

    from graft.recipe.chain import Chain

    with waiting(f"planning {model_of(chosen)}"):
        plans = _plans(chosen)
        fitting = _fitting(chosen) if fit and not isinstance(chosen, Chain) else {}
    if isinstance(chosen, Chain):
        show_json([{"stage": name, **p.facts()} for name, p in plans.items()]) if json else _show(plans)
    else:
        planned = plans[""]
        show_json(planned.facts() | fitting) if json else show(_painted(planned))
        if fit and not json:
            show(f"model    {fitting['largest_model'] or 'none of the usual ones'}, as the largest")
    after(f"graft train {shlex.join(word for word in sys.argv[2:] if word not in ('--json', '--fit'))}")


def _plans(chosen: "Recipe | Chain") -> "dict[str, Plan]":
    """Return the plan of every stage by its name; that of a recipe of one stage under ""."""
    from graft.recipe.chain import Chain

    if isinstance(chosen, Chain):
        return {name: _planned(chosen.before(name)) for name in chosen.recipes}
    return {"": _planned(chosen)}


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


def _painted(planned: "Plan") -> str:
    """Return a plan as text, red where the run does not fit."""
    return str(planned).replace(planned.verdict, painted_verdict(planned.verdict, stream=sys.stdout))


def _show(plans: "dict[str, Plan]") -> None:
    """Print the plan of every stage, then which needs the most."""
    for number, (name, planned) in enumerate(plans.items(), 1):
        show(f"stage {number} of {len(plans)}   {name}\n{_painted(planned)}\n")
    name, largest = max(plans.items(), key=lambda item: item[1].needs)
    verdict = painted_verdict(
        "all fit" if all(p.fits for p in plans.values()) else "DOES NOT FIT", stream=sys.stdout
    )
    needs = f"needs {size(largest.peak)} of {size(largest.available)}"
    show(f"most     stage {name} {needs}: {verdict}")
