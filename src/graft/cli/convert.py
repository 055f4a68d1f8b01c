"""graft convert: bring in an old LoRA file in loralib layout, which is a pickle."""

from pathlib import Path
from typing import Annotated

import typer

from graft.cli.say import after, show


def add_to(app: typer.Typer) -> None:
    app.command("convert", help="Make a pickled loralib file an adapter folder.")(convert)


def convert(
    file: Annotated[Path, typer.Argument(help="The file (.bin, .pt) in loralib layout.")],
    folder: Annotated[Path, typer.Argument(help="The adapter folder to write.")],
    alpha: Annotated[float, typer.Option("--alpha", help="lora_alpha of its training, which the file does not state.")],
    base: Annotated[str, typer.Option("--base", help="The model it was trained on.")] = "",
    force: Annotated[bool, typer.Option("--force", help="Replace what is in the folder.")] = False,
) -> None:
    """A pickle can run code when it is read. This reads weights only, in a process of its own with limits, and writes
    safetensors; nothing else in graft opens a pickle."""
    from graft.formats import loralib  # torch costs seconds

    show(loralib.convert(file, folder, lora_alpha=alpha, base=base or None, force=force))
    after(f"graft chat MODEL --adapter {folder}")
