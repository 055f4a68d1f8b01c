"""graft rank: the leaderboard of files of judgements, with intervals and what sways the judges."""

from pathlib import Path
from typing import Annotated

import typer

from graft.cli.say import after, show, show_json, table, talk
from graft.cli.wait import begin
from graft.errors import UsageError
from graft.storage import replace, require_file


def add_to(app: typer.Typer) -> None:
    app.command("rank", help="Rank models by judgements of their answers.")(rank)


def rank(
    judgements: Annotated[list[str], typer.Argument(help="Files that graft judge wrote, or of their form.")],
    by: Annotated[str, typer.Option(help="bradley_terry, or elo over 10,000 orders.")] = "bradley_terry",
    separate: Annotated[
        bool, typer.Option("--separate", help="Count the two orders of a pair as two games.")
    ] = False,
    relative_to: Annotated[
        str | None, typer.Option(help="Show marks in per cent of those of this model.")
    ] = None,
    matrix: Annotated[bool, typer.Option("--matrix", help="Show who won how much against whom.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Decides the orders and the drawn prompts.")] = 0,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", help="Also write the leaderboard to this file.")
    ] = None,
    page: Annotated[
        Path | None, typer.Option(help="Also write a page with pictures to this file, in HTML.")
    ] = None,
    answers: Annotated[
        list[str] | None, typer.Option(help="Files of the answers, which the page shows; repeat for several.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the same facts for programs.")] = False,
) -> None:
    if answers and page is None:
        raise UsageError("--answers without --page", "a page to show them on", "give --page FILE as well")
    for path in (csv_file, page):
        if path is not None:
            require_file(path)
    begin("reading judgements")
    from graft.evaluate import leaderboard_text as text
    from graft.evaluate.judgements import read_judgements  # torch costs seconds
    from graft.evaluate.leaderboard import leaderboard

    read = [one for path in judgements for one in read_judgements(path)]
    board = leaderboard(read, by, averaged=not separate, relative_to=relative_to, seed=seed)
    if csv_file is not None:
        _write(csv_file, text.csv_text(board))
    if page is not None:
        from graft.evaluate.answer_files import merged, read_answers
        from graft.runs.report.judgements import judgement_page

        # Those that graft judge kept may be the same ones, kept beside several files.
        shown = merged(read_answers(*(answers or [])), *(read_answers(path) for path in _kept(judgements)))
        title = f"graft rank {' '.join(judgements)}"
        _write(page, judgement_page(title, board, read, shown, seed=seed))
    if json:
        show_json(board.json())
    else:
        show(table(*text.places(board)))
        if matrix:
            show(f"\n{table(*text.matrix(board))}")
        show("")
        for line in text.facts(board):
            show(line)
    if page is not None:
        talk(f"wrote   {page}")
    after(
        f"graft rank {' '.join(judgements)} --matrix"
        if not matrix
        else "graft judge A.jsonl B.jsonl --by JUDGE"
    )


def _kept(judgements: list[str]) -> list[Path]:
    """Return the files of answers that graft judge kept beside the judgements."""
    beside = [Path(path).with_suffix(".answers.jsonl") for path in judgements]
    return [path for path in beside if path.is_file()]


def _write(path: Path, text: str) -> None:
    """Write a file, and its folder where that is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, text.encode(errors="replace"))  # half a character has no bytes
