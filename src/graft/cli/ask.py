"""graft ask: a file of rows in, each answered by the adapter that it names; the answers out."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graft.cli.say import after, show, show_json, table, talk
from graft.cli.wait import begin
from graft.sizes import duration, size

if TYPE_CHECKING:
    from graft.runs.ask import Answered

SHOWN = 5  # rows that could not be asked, which are named
LINES = 10  # lines of progress, about


def add_to(app: typer.Typer) -> None:
    help = """Answer a file of rows, each by the adapter that its column `adapter` names.

    Rows ask as those of training do (prompt, messages, text, ...); an empty name is the bare base. The same
    command goes on after a stop. Exit code 1: rows that could not be asked have an `error`."""
    app.command("ask", help=help, short_help="Answer a file of rows by many adapters at once.")(ask)


def ask(
    rows: Annotated[str, typer.Argument(help="JSONL, JSON, CSV, ..., or seedling:NAME.")],
    adapters: Annotated[list[Path], typer.Option(help="Folder of adapters or runs; repeatable.")],
    model: Annotated[str | None, typer.Option(help="The base; by default the one that they name.")] = None,
    adapter: Annotated[str | None, typer.Option(help="Of rows without the column; base: no adapter.")] = None,
    out: Annotated[Path, typer.Option(help="The answers.")] = Path("answers.jsonl"),
    raw: Annotated[bool, typer.Option("--raw", help="Continue texts without a chat template.")] = False,
    quant: Annotated[str | None, typer.Option(help="How to load the base: none, nf4, int8, ...")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many rows.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows at once.")] = 8,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 256,
    temperature: Annotated[float, typer.Option(min=0, help="0: the likeliest.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Nucleus sampling.")] = 1.0,
    min_p: Annotated[float, typer.Option(help="Least share of the likeliest.")] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1: tokens repeat less.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same answers.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file, or begin it anew.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the same facts for programs.")] = False,
) -> None:
    from graft.runs.answer_file import require_new

    require_new(out, force=force)  # before torch, whose import costs seconds
    sampling: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "seed": seed,
        "top_p": top_p,
        "min_p": min_p,
    }
    sampling["repetition_penalty"] = repetition_penalty
    if temperature:
        sampling |= {"do_sample": True, "temperature": temperature}
    begin("loading the base and the adapters", briefly=True)
    from graft.runs.ask import ask as ask_rows

    report = ask_rows(
        rows,
        adapters,
        out,
        model=model,
        adapter=adapter,
        quant=quant,
        raw=raw,
        batch_size=batch_size,
        limit=limit,
        force=force,
        progress=_progress,
        **sampling,
    )
    if json:
        show_json(report.facts())
    else:
        counts = sorted(report.by_adapter.items())
        show(table(("adapter", "answers"), [(name or "(base)", f"{count:,}") for name, count in counts]))
    _say(report)
    for text in report.errors[:SHOWN]:
        talk(f"error   {text}")
    if len(report.errors) > SHOWN:
        talk(f"error   and {len(report.errors) - SHOWN:,} more: grep '\"error\"' {out}")
    after(f"graft judge {out} OTHER.jsonl --by rule:rouge_l   (compares it with the answers of others)")
    if report.errors:
        raise typer.Exit(1)


def _say(report: "Answered") -> None:
    """Print what was loaded, how fast it was, and what was written."""
    many = "1 adapter" if report.adapters == 1 else f"{report.adapters} adapters"
    talk(f"base    {report.base}   {many}, {size(report.adapter_bytes)}")
    kept = f", {report.kept:,} of an earlier start" if report.kept else ""
    failed = f", {len(report.errors):,} without an answer" if report.errors else ""
    speed = f"{report.tokens:,} tokens in {duration(report.seconds)}"
    talk(f"wrote   {report.out}: {report.rows:,} rows{failed}{kept}; {speed}")


def _progress(done: int, total: int) -> None:
    """Say now and then how many rows have their answer."""
    if done == total or done % max(1, total // LINES) == 0:
        talk(f"asked   {done:,} of {total:,}")
