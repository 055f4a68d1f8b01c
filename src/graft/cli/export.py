"""graft export: the result in the layout that other programs load."""

from pathlib import Path
from typing import Annotated

import typer

from graft.cli.say import after, show, show_json, size_of


def add_to(app: typer.Typer) -> None:
    app.command("export", help="Write a merged model folder (hf, packed) or an adapter (peft).")(export)


def export(
    model: Annotated[str, typer.Argument(help="A run's folder, an adapter's folder, a model, or seedling.")],
    folder: Annotated[Path, typer.Argument(help="Where to write.")],
    to: Annotated[
        str,
        typer.Option(help="hf: one ordinary model folder; packed: one in the base's few bits; peft: the adapter."),
    ] = "hf",
    adapter: Annotated[list[str] | None, typer.Option(help="Adapter folder, or NAME=FOLDER.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is in the folder.")] = False,
    lossy: Annotated[bool, typer.Option("--lossy", help="Merge even where rounding loses what was learnt.")] = False,
    json: Annotated[bool, typer.Option("--json", help="What was written, for programs.")] = False,
) -> None:
    from graft.export import export as write  # torch costs seconds
    from graft.runs import open_model

    opened = open_model(model, adapters=adapter or ())
    written = write(opened.base, folder, to, adapter=opened.adapter, force=force, lossy=lossy)
    if json:
        show_json({"folder": str(written), "to": to, "files": sorted(path.name for path in written.iterdir())})
    else:
        show(f"wrote   {written} ({size_of(written)})")
    after(f"graft chat {written}" if to != "peft" else f"graft chat {opened.base.name} --adapter {written}")
