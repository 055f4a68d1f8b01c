"""graft compare: the answers of two runs or models to the same prompts, their scores, and what judges say."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graft.cli.say import after, score_table, show, show_json, table, talk
from graft.cli.wait import begin
from graft.errors import UsageError

if TYPE_CHECKING:
    from graft.data.templates import Prompt
    from graft.evaluate.win_rates import WinRate

WIDTH = 56  # characters of a column


def add_to(app: typer.Typer) -> None:
    app.command("compare", help="Show the answers of two runs or models, side by side.")(compare)


def compare(
    first: Annotated[str, typer.Argument(help="A run's folder, an adapter's folder, a model, or seedling.")],
    second: Annotated[str, typer.Argument(help="Another one.")],
    prompts: Annotated[Path | None, typer.Option(help="A text file, one prompt a line.")] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt; repeat for several.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Use at most this many prompts.")] = 8,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 64,
    judgements: Annotated[
        list[Path] | None,
        typer.Option(help="Files of graft judge; by default judgements.jsonl in the folders of the two."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the same facts for programs.")] = False,
) -> None:
    given = [*(prompt or []), *prompt_lines(prompts)]

    begin(f"loading {first}")
    from graft.runs.judged import judged_between  # torch costs seconds
    from graft.runs.open import last_words, open_model  # torch costs seconds
    from graft.runs.score import incomparable, prompts_of, scores_of  # torch costs seconds

    rates = judged_between(first, second, judgements or ())
    answers = []
    asked: Sequence[Prompt] = given[:limit]
    for name in (first, second):  # one after the other: both together may not fit into memory
        opened = open_model(name)
        asked = asked or prompts_of(opened, limit)
        answers.append(opened.ask(asked, max_new_tokens=max_new_tokens))
        del opened
    scores = {name: scores_of(name) for name in (first, second)}
    facts = {
        "prompts": asked,
        "answers": {first: answers[0], second: answers[1]},
        "scores": scores,
        "judgements": [rate.json() for rate in rates],
        "warnings": (warnings := incomparable(first, second)),
    }
    if json:
        show_json(facts)
    else:
        for prompt_, left, right in zip(asked, *answers, strict=True):
            show(
                f"\n> {' '.join(last_words(prompt_).split())}\n{side_by_side((first, left), (second, right))}"
            )
        show(_scores(scores))
        for rate in rates:
            show(f"\n{_win_rate(rate)}")
    for text in warnings:
        talk(f"warning {text}")
    after(f"graft chat {second}")


def prompt_lines(path: Path | None) -> list[str]:
    """Return the lines of a file that are not empty."""
    if path is None:
        return []
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path} cannot be read: {error}", "a text file with one prompt a line", "check the path"
        ) from error


def side_by_side(left: tuple[str, str], right: tuple[str, str]) -> str:
    """Return two named texts in columns of WIDTH characters."""
    columns = [
        [name, "-" * WIDTH, *(textwrap.wrap(text, WIDTH) or ["(nothing)"])] for name, text in (left, right)
    ]
    height = max(map(len, columns))
    rows = zip(*(column + [""] * (height - len(column)) for column in columns), strict=True)
    return "\n".join(f"{a:<{WIDTH}}   {b}".rstrip() for a, b in rows)


def _scores(columns: dict[str, dict[str, Any]]) -> str:
    """Return the scores of both as a table, or "" if there are none."""
    return "\n" + score_table(columns) if any(columns.values()) else ""


def _win_rate(rate: "WinRate") -> str:
    """Return what a judge says of both as a table, in the columns of their scores."""
    from graft.evaluate.leaderboard_text import interval

    prompts = rate.wins + rate.ties + rate.losses
    rows = []
    if rate.won and rate.lost:
        sides = (rate.won, rate.lost)
        rows.append(["points won", *(f"{side.value:.1%}" for side in sides)])
        rows.append(["95 %", *(interval(side, ".1%") for side in sides)])
        for what, counts in (("won", (rate.wins, rate.losses)), ("tied", (rate.ties, rate.ties))):
            rows.append([f"prompts {what}", *(f"{n:,} of {prompts:,} ({n / prompts:.1%})" for n in counts)])
    if rate.unread:
        rows.append(["no verdict", f"{rate.unread:,} judgements", ""])
    return table([f"judge {rate.judge}".rstrip(), rate.first, rate.second], rows)
