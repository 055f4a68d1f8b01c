"""graft merge: fold an adapter into its base, say what the rounding cost, write one ordinary model."""

import json as codec
from pathlib import Path
from typing import Annotated

import typer

from graft.cli.say import after, show, show_json, size_of, talk


def add_to(app: typer.Typer) -> None:
    app.command("merge", help="Fold an adapter into its base; says what it cost.")(merge)


def merge(
    model: Annotated[str, typer.Argument(help="A run's folder, an adapter's folder, or a base with --adapter.")],
    folder: Annotated[Path, typer.Argument(help="Where to write the model.")],
    adapter: Annotated[
        list[str] | None, typer.Option(help="Adapter folder, or NAME=FOLDER, when MODEL is a base.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is in the folder.")] = False,
    lossy: Annotated[bool, typer.Option("--lossy", help="Merge even where rounding loses what was learnt.")] = False,
    json: Annotated[bool, typer.Option("--json", help="The same facts for programs.")] = False,
) -> None:
    from graft.export import REPORT, export  # torch costs seconds
    from graft.runs import open_model

    opened = open_model(model, adapters=adapter or ())
    written = export(opened.base, folder, "hf", adapter=opened.adapter, force=force, lossy=lossy)
    facts = codec.loads((written / REPORT).read_text(encoding="utf-8"))
    if json:
        show_json({"folder": str(written), **facts})
    else:
        show(f"wrote   {written} ({size_of(written)})")
        for part in facts["adapters"]:
            moved, dtype = part["logits"], facts["dtype"]
            talk(f"merged  {part['adapter']}: {part['kept']:.1%} of its change survives the rounding to {dtype}")
            talk(f"logits  differ by {moved['mean']:.2g} on average; the adapter moves them by {moved['effect']:.2g}")
        if facts["note"]:
            talk(f"note    {facts['note']}")
    after(f"graft chat {written}   (or: graft quantize {written} OUT)")
