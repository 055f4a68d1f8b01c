"""graft compare: the answers of two runs or models to the same prompts, side by side, and their scores."""

import textwrap
from pathlib import Path
from typing import Annotated, Any

import typer

from graft.cli.say import after, score_table, show, show_json, talk
from graft.errors import UsageError

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
    json: Annotated[bool, typer.Option("--json", help="Print the same facts for programs.")] = False,
) -> None:
    given = [*(prompt or []), *prompt_lines(prompts)]

    from graft.runs.open import last_words, open_model  # torch costs seconds
    from graft.runs.score import incomparable, prompts_of, scores_of  # torch costs seconds

    answers = []
    asked = given[:limit]
    for name in (first, second):  # one after the other: both together may not fit into memory
        opened = open_model(name)
        asked = asked or prompts_of(opened, limit)
        answers.append(opened.ask(asked, max_new_tokens=max_new_tokens))
        del opened
    scores = {name: scores_of(name) for name in (first, second)}
    facts = {"prompts": asked, "answers": {first: answers[0], second: answers[1]}, "scores": scores}
    facts["warnings"] = incomparable(first, second)
    if json:
        show_json(facts)
    else:
        for prompt_, left, right in zip(asked, *answers, strict=True):
            show(
                f"\n> {' '.join(last_words(prompt_).split())}\n{side_by_side((first, left), (second, right))}"
            )
        show(_scores(scores))
    for text in facts["warnings"]:
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
