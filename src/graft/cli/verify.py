"""graft verify: check a merged or exported folder against its certificate, and print what differs."""

from pathlib import Path
from typing import Annotated

import typer

from graft.cli.say import after, show, show_json, table
from graft.errors import UsageError

CERTIFICATE = "certificate.json"  # repeated here, because graft.shipping imports torch


def add_to(app: typer.Typer) -> None:
    app.command("verify", help="Check a merged or exported folder against its certificate.")(verify)


def verify(
    folder: Annotated[Path, typer.Argument(help="A folder that graft merge or graft export wrote.")],
    json: Annotated[bool, typer.Option("--json", help="Print the same facts for programs.")] = False,
) -> None:
    """Compare files and fingerprints, and measure weights, logits and perplexity again.

    Measuring needs the base and the adapters where they were. Exit code 1 if something differs.
    """
    if not (folder / CERTIFICATE).is_file():
        raise UsageError(
            f"{folder} has no {CERTIFICATE}",
            "a folder that graft merge or graft export wrote",
            "check the path",
        )
    from graft.shipping.verify import DIFFERS
    from graft.shipping.verify import verify as check  # torch costs seconds

    checks = check(folder)
    differs = any(one.state == DIFFERS for one in checks)
    if json:
        facts = [{"what": one.what, "state": one.state, "finding": one.finding} for one in checks]
        show_json({"folder": str(folder), "same": not differs, "checks": facts})
    else:
        show(table(("what", "state", "finding"), [(one.what, one.state, one.finding) for one in checks]))
    if differs:
        after("write the folder again with graft merge or graft export: the table shows what differs")
        raise typer.Exit(1)
    model = next(folder.glob("*.gguf"), folder)
    after(
        f"graft chat MODEL --adapter {model}" if model.name.endswith("-lora.gguf") else f"graft chat {model}"
    )
