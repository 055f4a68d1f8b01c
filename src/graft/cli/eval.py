"""graft eval: score a run, a model, or a model with an adapter; with an adapter, next to the bare base.

On rows, or on public benchmarks (`graft.cli.benchmarks`).
"""

from collections.abc import Mapping
from typing import Annotated

import typer

from graft.cli import benchmarks
from graft.cli.say import after, score_table, show, show_json
from graft.cli.wait import waiting
from graft.cli.words import STAGES
from graft.errors import UsageError, listed


def add_to(app: typer.Typer) -> None:
    app.command("eval", help="Score a run or a model, next to the bare base.")(evaluate)


def list_metrics(wanted: bool) -> None:
    """Print what each metric measures, and stop."""
    if wanted:
        from graft.recipe.metric_help import HELP, OWN, OWN_HELP  # late: pydantic, which no --help needs

        lines = {**HELP, OWN: OWN_HELP}
        show("\n".join(f"{name:<14}  {text}" for name, text in lines.items()))
        after("graft eval RUN --metric bleu")
        raise typer.Exit


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
    limit: Annotated[int | None, typer.Option(min=1, help="Maximum number of rows, of each task.")] = None,
    tasks: Annotated[
        str | None, typer.Option(help="Benchmarks of lm-eval instead: arc_easy,hellaswag or files.")
    ] = None,
    num_fewshot: Annotated[int | None, typer.Option(min=0, help="Examples in a task's prompts.")] = None,
    include_path: Annotated[list[str] | None, typer.Option(help="Folder of tasks of your own.")] = None,
    apply_chat_template: Annotated[
        bool, typer.Option("--apply-chat-template", help="Ask tasks as conversations.")
    ] = False,
    quant: Annotated[str | None, typer.Option(help="none, nf4, fp4, int8, int4, ...")] = None,
    metrics_list: Annotated[
        bool,
        typer.Option("--metrics-list", is_eager=True, callback=list_metrics, help="List all metrics."),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the same facts for programs.")] = False,
) -> None:
    if tasks is not None:
        others = {"--data": data, "--metric": metric, "--stage": stage}
        _refuse(others, "with --tasks", "leave it out: tasks have rows and metrics of their own")
        chosen = {
            "names": [name.strip() for name in tasks.split(",") if name.strip()],
            "include_path": include_path or (),
            "num_fewshot": num_fewshot,
            "limit": limit,
            "chat": apply_chat_template,
        }
        benchmarks.run(model, adapter or (), quant, chosen, json=json)
        return
    own = {
        "--num-fewshot": num_fewshot,
        "--include-path": include_path,
        "--apply-chat-template": apply_chat_template or None,
    }
    _refuse(own, "without --tasks", "name the benchmarks: --tasks arc_easy,hellaswag")
    with waiting(f"loading {model}"):
        from graft.runs.open import open_model  # torch costs seconds
        from graft.runs.score import score, scoring_recipe

        opened = open_model(model, adapters=adapter or (), quant=quant)
    if opened.recipe is None and data is None:
        raise UsageError(
            f"{model} is not a run, so it has no held-out rows",
            "--data ROWS",
            "name the rows to score on, for example --data seedling:descriptions-held-out",
        )
    with waiting("scoring") as tell:
        recipe = scoring_recipe(opened, stage, metric or (), limit)
        table = score(opened, recipe, data, lambda what, done, total: tell(done, total))
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


def _refuse(options: Mapping[str, object], where: str, remedy: str) -> None:
    """Raise UsageError for options that are given where they mean nothing."""
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise UsageError(f"{listed(given)} {where}", "options that belong together", remedy)
