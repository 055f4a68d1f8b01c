"""graft quantize: store a model's linear weights in 2 to 8 bits."""

from pathlib import Path
from typing import Annotated

import typer

from graft.cli.say import after, show, show_json, talk
from graft.cli.wait import begin
from graft.cli.words import STAGES
from graft.sizes import size_of
from graft.storage import refuse_occupied


def add_to(app: typer.Typer) -> None:
    app.command("quantize", help="Write a model with weights in 2 to 8 bits.")(quantize)


def quantize(
    model: Annotated[str, typer.Argument(help="A model's folder, a hub id, or seedling.")],
    folder: Annotated[Path, typer.Argument(help="Where to write.")],
    quant: Annotated[
        str, typer.Option("--quant", "--to", help="nf4, fp4, int8; in groups: int4, int3, int2, int8g.")
    ] = "nf4",
    group_size: Annotated[
        int, typer.Option(help="Weights that share a scale; 0 means 64, or 32 in groups.")
    ] = 0,
    data: Annotated[
        str | None,
        typer.Option(help="Rows or a run to calibrate by (GPTQ); by default weights are rounded."),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="How many rows to calibrate by.")] = 128,
    max_length: Annotated[int, typer.Option(min=1, help="Tokens per row.")] = 1024,
    stage: Annotated[str, typer.Option(help=f"What the rows are for: {STAGES}.")] = "sft",
    force: Annotated[bool, typer.Option("--force", help="Replace what is in the folder.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the same facts for programs.")] = False,
) -> None:
    from graft.recipe import read  # late: pydantic, which no --help needs

    chosen = {"train": data, "limit": rows, "max_length": max_length, "eval": None}
    calibrate = None if data is None else read({"model": model, "stage": stage, "data": chosen})
    refuse_occupied(folder, force=force)  # before the work
    begin(f"loading {model}")
    from graft.runs.quantise import quantise  # torch costs seconds

    def tell(done: int, total: int) -> None:
        talk(f"block   {done} of {total}")

    written = quantise(
        model, folder, quant, group_size=group_size, calibrate=calibrate, force=force, tell=tell
    )
    if json:
        show_json(
            {"folder": str(written), "quant": quant, "files": sorted(path.name for path in written.iterdir())}
        )
    else:
        show(f"wrote   {written} in {quant} ({size_of(written)})")
    after(f"graft chat {written}")
