"""graft data: show rows as the model sees them, with the learnt tokens in colour; convert them to others."""

import sys
from typing import Annotated

import typer

from graft.cli.data_convert import convert_rows
from graft.cli.data_report import report_lines
from graft.cli.say import after, print_markup, show, show_json
from graft.cli.wait import begin
from graft.cli.words import STAGES

group = typer.Typer(
    name="data", help="Look at training data, and convert it.", no_args_is_help=True, rich_markup_mode=None
)


def add_to(app: typer.Typer) -> None:
    app.add_typer(group)


@group.callback()
def _data() -> None:
    """Make `graft data` a group: without this, typer would drop the second word of `graft data show`."""


group.command("convert", help="Turn trees, votes or rows into rows to learn from, pairs, or judged answers.")(
    convert_rows
)


@group.command(
    "show", help="Print rows as the model sees them; learnt text is green, or in ⟦⟧ without colours."
)
def show_rows(
    path: Annotated[str, typer.Argument(help="A file, a folder, seedling:NAME, or a run's folder.")],
    model: Annotated[str, typer.Option(help="The model whose tokenizer and template are used.")] = "seedling",
    rows: Annotated[int, typer.Option("-n", "--rows", min=1, help="How many rows.")] = 3,
    stage: Annotated[str, typer.Option(help=f"What the rows are for: {STAGES}.")] = "sft",
    max_length: Annotated[int, typer.Option(min=1, help="Tokens per row.")] = 1024,
    template: Annotated[str | None, typer.Option(help="A chat template: a file or a builtin name.")] = None,
    bad_rows: Annotated[str, typer.Option(help="strict: stop at a bad row; skip: list it.")] = "strict",
    tokens: Annotated[bool, typer.Option("--tokens", help="With --json: a piece for each token.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print counts and rows for programs.")] = False,
) -> None:
    from graft.recipe import read  # late: pydantic, which no --help needs

    settings = {"train": path, "max_length": max_length, "template": template, "bad_rows": bad_rows}
    recipe = read({"model": model, "stage": stage, "data": {**settings, "eval": None}})
    begin(f"loading the tokenizer of {model}")
    from graft.runs.look import look  # after the words are checked: torch costs seconds

    report = look(recipe, rows, each_token=tokens and json)
    colour = sys.stdout.isatty()
    if json:
        show_json(report.json())
    else:
        for line in report_lines(report, colour):
            print_markup(line, stream=sys.stdout) if colour else show(line)
    of_stage = "" if stage == "sft" else f" stage={stage}"
    after(f"graft train --model {model} --data {path}{of_stage}")
