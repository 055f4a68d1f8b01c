"""graft demo: the main job from end to end on the embedded model and data, in a few minutes."""

from pathlib import Path
from typing import Annotated

import typer

from graft.cli.progress import Progress
from graft.cli.say import after, show, table, talk


def add_to(app: typer.Typer) -> None:
    app.command("demo", help="Run the whole job on the embedded model: plan, train, evaluate, export.")(demo)


def demo(
    folder: Annotated[Path, typer.Option(help="Where the run and the merged model go.")] = Path("runs/demo"),
) -> None:
    from graft import demo as job  # torch costs seconds
    from graft.export import export
    from graft.plan import plan
    from graft.run import run
    from graft.runs import open_model

    chosen, model = job.recipe(folder), folder / "merged"
    talk(f"recipe  {job.RECIPE}")
    show(str(plan(chosen)))
    with Progress(chosen) as progress:
        result = run(chosen, observer=progress)

    items, written = job.held_out()
    base, adapter = (opened := open_model(str(folder))).base, opened.adapter
    texts = {"before": job.answers(base, None, items), "after": job.answers(base, adapter, items)}
    scores = {when: job.measure(said, items) for when, said in (*texts.items(), ("reference", written))}
    show(_table(scores, result.scores))
    show(f"\n{job.prompt(items[0])}\n  before    {_line(texts['before'][0])}\n  after     {_line(texts['after'][0])}\n")

    base.merge(adapter)
    export(base, model, to="hf")
    difference = job.reload_difference(base, model, items[0])
    talk(f"wrote   {model}; plain transformers loads it, logits differ by at most {difference:.1e}")
    reasons = job.shortfalls(scores["before"], scores["after"], scores["reference"].others)
    if difference > job.SAME:
        reasons.append(f"logits of the exported model differ by {difference:.1e}, and {job.SAME:.0e} is allowed")
    for reason in reasons:
        talk(f"graft: the demo failed: {reason}")
    if reasons:
        raise typer.Exit(1)
    after(f"graft chat {folder}   (your own rows: graft train --model seedling --data ROWS.jsonl --method qlora)")


def _table(scores: dict[str, "Scores"], losses: dict[str, dict[str, float]]) -> str:
    """Measures down, before, after and reference across."""
    names = {
        "coverage": "attributes stated",
        "others": "another product's (chance: reference)",
        "verbatim": "list repeated verbatim",
        "distinct_2": "distinct word pairs",
        "unique": "distinct texts",
    }
    rows = [[label, *(f"{getattr(score, name):.2f}" for score in scores.values())] for name, label in names.items()]
    rows.append(["perplexity of the reference", *(f"{losses[when]['perplexity']:.2f}" for when in ("before", "after")), ""])
    return table(["held-out products", *scores], rows)


def _line(text: str) -> str:
    return " ".join(text.split())
