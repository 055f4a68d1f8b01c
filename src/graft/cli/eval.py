"""graft eval: score a run, a model, or a model with an adapter; with an adapter, next to the bare base."""

from typing import Annotated

import typer

from graft.cli.say import after, score_table, show, show_json
from graft.cli.words import STAGES
from graft.errors import UsageError


def add_to(app: typer.Typer) -> None:
    app.command("eval", help="Score a run or a model, next to the bare base.")(evaluate)


def evaluate(
    model: Annotated[str, typer.Argument(help="A run's folder, an adapter's folder, a model, or seedling.")],
    data: Annotated[
        str | None, typer.Option(help="Rows to score on; by default the run's test or eval rows.")
    ] = None,
    adapter: Annotated[list[str] | None, typer.Option(help="Adapter folder, or NAME=FOLDER.")] = None,
    metric: Annotated[
        list[str] | None, typer.Option(help="perplexity, accuracy, bleu, ... or module:function; repeatable.")
    ] = None,
    stage: Annotated[str | None, typer.Option(help=f"What the rows are for: {STAGES}.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many rows.")] = None,
    quant: Annotated[str | None, typer.Option(help="none, nf4, fp4, int8, int4, ...")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the same facts for programs.")] = False,
) -> None:
    from graft.runs.open import open_model  # torch costs seconds
    from graft.runs.score import score, scoring_recipe  # torch costs seconds

    opened = open_model(model, adapters=adapter or (), quant=quant)
    if opened.recipe is None and data is None:
        raise UsageError(
            f"{model} is no run, so it has no held-out rows",
            "--data ROWS",
            "name the rows to score on, for example --data seedling:descriptions-held-out",
        )
    table = score(opened, scoring_recipe(opened, stage, metric or (), limit), data)
    if not table.columns:
        raise UsageError(
            f"the run {model} has no held-out rows",
            "--data ROWS, or a recipe with data.eval or data.test",
            "name the rows to score on",
        )
    if json:
        show_json({"columns": table.columns, "texts": table.texts, **table.coverage.json()})
    else:
        show(score_table(table.columns))
        for line in table.coverage.lines():
            show(line)
    after(
        f"graft export {model} OUT --to hf"
        if opened.adapter
        else f"graft train --model {model} --data ROWS.jsonl --method qlora"
    )
