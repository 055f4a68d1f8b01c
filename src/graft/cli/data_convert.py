"""graft data convert: turn trees of messages, votes and rows of any layout into rows of one kind."""

import json as plain_json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from graft.cli.say import after, show, show_json, talk
from graft.errors import DataError, UsageError, one_of
from graft.sizes import counted
from graft.storage import new_file, output_locked, require_file

if TYPE_CHECKING:
    from graft.data.convert import Converted

SHOWN = 3  # rows of each reason that are named
NEXT = {
    "sft": "graft train --model MODEL --data {file}",
    "preference": "graft data show {file} --stage preference",
    "judged": "graft train --model MODEL --data {file} stage=kto",
}


def convert_rows(
    path: Annotated[str, typer.Argument(help="Trees (Open Assistant), votes (arenas), or rows.")],
    out: Annotated[Path, typer.Argument(help="The file to write, ending in .jsonl.")],
    to: Annotated[str, typer.Option(help="sft: best answers; preference: pairs; judged: good and bad ones.")],
    paths: Annotated[
        str,
        typer.Option(
            help="Of trees, for sft: best (one a tree, as Guanaco), all, each (question, best reply)."
        ),
    ] = "best",
    lang: Annotated[str | None, typer.Option(help="Of trees: only messages of this language.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print counts, and every row left out.")] = False,
) -> None:
    from graft.data.convert import KINDS, convert  # the readers, which no --help needs
    from graft.data.read import records
    from graft.data.trees import PATHS

    one_of("--to", to, KINDS)
    one_of("--paths", paths, PATHS)
    if out.suffix != ".jsonl":
        raise UsageError(f"the file {out}", "one that ends in .jsonl", "write for instance rows.jsonl")
    _require_new(out, force=force)
    made = convert(records(path), to, paths=paths, lang=lang)
    if not made.rows:
        counts = ", ".join(f"{reason} {n}" for reason, n in _by_reason(made).items())
        first = f", first {made.left[0]}" if made.left else ""
        raise DataError(
            f"none of the {made.read} rows of {path} gives a row for {to} ({counts or 'no rows'}{first})",
            "trees, votes, or rows that say which answer is better or good",
            "choose another --to, or look at the rows",
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    with output_locked(out), new_file(out) as draft:
        _require_new(out, force=force)  # another process may have written it in between
        lines = (plain_json.dumps(row, ensure_ascii=False) + "\n" for row in made.rows)
        draft.write_text("".join(lines), encoding="utf-8")
    if json:
        left = [asdict(reject) for reject in made.left]
        show_json(
            {"file": str(out), "rows": len(made.rows), "read": made.read, "left": left, "unused": made.unused}
        )
    else:
        _tell(made)
        show(f"wrote   {out} ({counted(len(made.rows), 'row')} of {made.read:,})")
    after(NEXT[to].format(file=out))


def _tell(made: "Converted") -> None:
    """Print what is left out, by reason, and what is not in the new rows."""
    from graft.data.report import unread

    for reason, count in _by_reason(made).items():
        sources = dict.fromkeys(reject.source for reject in made.left if reject.reason == reason)
        talk(f"left    {count:,} x {reason}: {', '.join(list(sources)[:SHOWN])}")
    for text in unread(made.unused, len(made.rows)):
        talk(f"note    {text}")


def _require_new(out: Path, *, force: bool) -> None:
    """Raise UsageError if a file cannot be written, or is there and force is False."""
    require_file(out)
    if out.exists() and not force:
        raise UsageError(f"{out} exists", "a new file", "choose another name, or pass --force")


def _by_reason(made: "Converted") -> dict[str, int]:
    return dict(Counter(reject.reason for reject in made.left).most_common())
