"""graft quantize: store a model's linear weights in 4 or 8 bits."""

from pathlib import Path
from typing import Annotated

import typer

from graft.cli.say import after, show, show_json, size_of


def add_to(app: typer.Typer) -> None:
    app.command("quantize", help="Write a model with weights in 4 or 8 bits.")(quantize)


def quantize(
    model: Annotated[str, typer.Argument(help="A model's folder, a hub id, or seedling.")],
    folder: Annotated[Path, typer.Argument(help="Where to write.")],
    quant: Annotated[str, typer.Option("--quant", "--to", help="nf4, fp4 or int8.")] = "nf4",
    force: Annotated[bool, typer.Option("--force", help="Replace what is in the folder.")] = False,
    json: Annotated[bool, typer.Option("--json", help="The same facts for programs.")] = False,
) -> None:
    from graft.runs import quantise  # torch costs seconds

    written = quantise(model, folder, quant, force=force)
    if json:
        show_json({"folder": str(written), "quant": quant, "files": sorted(path.name for path in written.iterdir())})
    else:
        show(f"wrote   {written} in {quant} ({size_of(written)})")
    after(f"graft chat {written}")
