"""graft verify: check what Graft wrote against the digests beside it, and print what differs."""

from pathlib import Path
from typing import Annotated

import typer

from graft.cli.say import after, show, show_json, table
from graft.cli.wait import begin
from graft.errors import UsageError

# Files that tell a folder's kind; repeated here, because what checks them imports torch.
KNOWN = ("certificate.json", "adapter_config.json", "recipe.yaml", "config.json")


def add_to(app: typer.Typer) -> None:
    app.command("verify", help="Check a folder that Graft wrote: are its files unchanged?")(verify)


def verify(
    folder: Annotated[
        Path, typer.Argument(help="A merged, exported or quantised folder, an adapter, or a run.")
    ],
    base: Annotated[str | None, typer.Option(help="Where the base is now, if it was moved.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the same facts for programs.")] = False,
) -> None:
    """Compare files with their digests; of a merged or exported folder, measure its answers again, too.

    Measuring needs the base, the adapters and the run's rows: what is gone is said to be not checked. Files
    of other programs have no digests and are not checked. Exit code 1 if something differs, 2 if there
    is nothing to compare.
    """
    if not any((folder / name).is_file() for name in KNOWN) and not any(folder.glob("*/recipe.yaml")):
        what = "holds no adapter, no run and no model" if folder.is_dir() else "is not a folder"
        raise UsageError(f"{folder} {what}", "a folder that Graft wrote", "check the path")
    begin(f"checking {folder}")
    from graft.runs.own_rows import again
    from graft.shipping.verify import DIFFERS, UNKNOWN
    from graft.shipping.verify import verify as check  # torch costs seconds

    checks = check(folder, base=base, rows_of=again)
    if all(one.state == UNKNOWN for one in checks):
        raise UsageError(
            f"{folder} has no digests: nothing in it can be compared",
            "what Graft saved, exported or quantised",
            "compare the files of another program with the digests that it gives",
        )
    differs = any(one.state == DIFFERS for one in checks)
    if json:
        facts = [{"what": one.what, "state": one.state, "finding": one.finding} for one in checks]
        show_json({"folder": str(folder), "same": not differs, "checks": facts})
    else:
        show(table(("what", "state", "finding"), [(one.what, one.state, one.finding) for one in checks]))
    if differs:
        after("copy or write again what differs, with the command that wrote it")
        raise typer.Exit(1)
    model = next(folder.glob("*.gguf"), folder)
    alone = model.name.endswith("-lora.gguf")
    after(f"graft chat MODEL --adapter {model}" if alone else f"graft chat {model}")
