"""graft demo: do the main job from end to end on the embedded model and data, in a minute or two."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graft.cli.progress import Progress
from graft.cli.say import after, show, table, talk
from graft.cli.wait import begin, is_terminal, waiting
from graft.errors import UsageError
from graft.sizes import duration
from graft.storage import require_run_folder

if TYPE_CHECKING:
    from graft.recipe import Recipe
    from graft.runs.open import Opened
    from graft.seedling.products import Product

BESIDE_S = 30  # seconds beside training: imports, answers, export


def add_to(app: typer.Typer) -> None:
    app.command("demo", help="Run the whole job on the embedded model, in a minute or two.")(demo)


def demo(
    folder: Annotated[Path, typer.Option(help="A new folder for the run and the merged model.")] = Path(
        "runs/demo"
    ),
) -> None:
    """Plan, train with QLoRA, ask the same prompts before and after, merge, export, load again.

    Exit code 1 if the model did not learn the task.
    """
    merged = folder / "merged"
    if merged.exists():
        raise UsageError(
            f"{folder} already holds a demo", "a new folder", f"delete it, or: graft demo --folder {folder}-2"
        )

    require_run_folder(folder)
    talk("The embedded model has read about products. Now it learns to describe them.")
    from graft.recipe import read
    from graft.seedling import DEMO

    recipe = read(DEMO, [f"output={folder}"])
    talk(f"This takes {_expected(recipe)}.\n")
    with waiting("planning"):
        from graft.planning.plan import plan
        from graft.runs import demo as job  # torch costs seconds
        from graft.runs.open import open_model
        from graft.runs.run import run

        planned = plan(recipe)
    recipe = recipe.model_copy(update={"dtype": planned.dtype})
    talk(str(planned))
    if not is_terminal():  # there the observer shows it
        begin("loading seedling", briefly=True)
    with Progress(recipe) as progress:
        run(recipe, observer=progress)
    with waiting("loading the trained model"):
        opened = open_model(str(folder))
    items, references = job.held_out()
    talk(f"\nThe same {len(items)} prompts about products that it has never seen, before and after:")
    texts = {}
    for name, adapter in (("before", None), ("after", opened.adapter)):
        with waiting(f"answering {name} training:") as tell:
            texts[name] = job.answers(opened.base, adapter, items, tell)
    scores = {name: job.measure(written, items) for name, written in texts.items()}
    chance = job.measure(references, items).others
    show(_table(scores, _perplexity(folder)))
    show(f"\nprompt  {' | '.join(f'{key}: {value}' for key, value in items[0].attributes)}")
    for name in texts:
        show(f"{name:<7} {' '.join(texts[name][0].split())}")
    difference = _exported(opened, merged, items[0])
    talk(f"\nwrote   {merged}: loads in plain transformers; logits differ by at most {difference:.1g}")
    shortfalls = job.shortfalls(scores["before"], scores["after"], chance)
    if difference > job.SAME:
        shortfalls.append(f"the exported model's logits differ by {difference:.2g}")
    for reason in shortfalls:
        talk(f"failed  {reason}")
    if shortfalls:
        after("graft doctor   (which checks this machine and its libraries)")
        raise typer.Exit(1)
    after(
        f"graft chat {folder}   (your own rows: graft train --model MODEL --data ROWS.jsonl --method qlora)"
    )


def _expected(recipe: "Recipe") -> str:
    """Return how long the demo will take, in words; what an earlier plan has found is used, without torch."""
    from graft.planning.kept import kept_plan

    known = kept_plan(recipe)
    if known is None or known.pace is None:
        return "one to two minutes on a laptop"
    return f"about {duration(BESIDE_S + known.pace.step * (known.pace.steps or 0))} on this machine"


def _exported(opened: "Opened", merged: Path, item: "Product") -> float:
    """Merge, export and load again; return how much the logits differ from those of plain transformers."""
    from graft.models.load import load
    from graft.runs import demo as job
    from graft.shipping.export import export

    with waiting("merging and exporting"):
        export(opened.base, merged, to="hf", adapter=opened.adapter)
    with waiting("loading what was exported"):
        return job.reload_difference(load(merged, dtype="fp32"), merged, item)  # 16 bits would round each way


def _table(scores: dict[str, Any], perplexity: dict[str, float]) -> str:
    """Return the measures before and after as a table."""
    rows = [
        ("attributes stated", "coverage", ".2f"),
        ("another product's attributes", "others", ".2f"),
        ("texts that copy the list", "verbatim", ".0%"),
        ("distinct word pairs", "distinct_2", ".2f"),
        ("distinct texts", "unique", ".2f"),
    ]
    cells = [(title, *(format(getattr(s, key), form) for s in scores.values())) for title, key, form in rows]
    last = [f"{perplexity[name]:.1f}" if name in perplexity else "-" for name in scores]
    return table(("measure", *scores), [*cells, ("perplexity of the references", *last)])


def _perplexity(folder: Path) -> dict[str, float]:
    """Return the perplexity in each column of the run's evaluation."""
    from graft.runs.score import evaluation_of

    columns = evaluation_of(str(folder)).get("columns", {})
    return {name: column["perplexity"] for name, column in columns.items() if "perplexity" in column}
