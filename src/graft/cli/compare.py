"""graft compare: the scores of runs in one table, with means over seeds; and what they answer."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graft.cli.say import after, note, show, show_json, table, talk
from graft.cli.score_tables import comparison_text, side_by_side, terminal_width
from graft.cli.wait import begin
from graft.errors import UsageError, listed
from graft.storage import replace, require_file

if TYPE_CHECKING:
    from graft.data.templates import Prompt
    from graft.evaluate.win_rates import WinRate
    from graft.runs.table import Comparison

ASKED = 8  # prompts that are asked by default


def add_to(app: typer.Typer) -> None:
    help = """Compare runs: their recorded scores in one table, with means over seeds.

    Two runs or models are asked as well, by default what the held-out rows ask; more of them only with
    --prompt, --prompts or --data. A folder of runs, such as a sweep's, stands for all of them."""
    app.command("compare", help=help, short_help="Set runs side by side: scores, means over seeds, answers.")(
        compare
    )


def compare(
    names: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="Runs, folders of runs, adapters, models."),
    ],
    prompts: Annotated[Path | None, typer.Option(help="Ask the lines of this text file.")] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="Ask this; repeat for several.")] = None,
    data: Annotated[str | None, typer.Option(help="Score all of them on these rows now.")] = None,
    metric: Annotated[list[str] | None, typer.Option(help="With --data: a metric; repeatable.")] = None,
    scores: Annotated[bool, typer.Option("--scores", help="Only what is recorded: load no model.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Most prompts, or rows of --data.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 64,
    judgements: Annotated[
        list[Path] | None,
        typer.Option(help="Of two: files of graft judge; by default theirs."),
    ] = None,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Also write the table to this file.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the same facts for programs.")] = False,
) -> None:
    given = [*(prompt or []), *prompt_lines(prompts)]
    if metric and data is None:
        raise UsageError("--metric without --data", "rows to score on", "give --data ROWS as well")
    if scores and (given or data or judgements):
        raise UsageError(
            "--scores with --prompt, --prompts, --data or --judgements",
            "one of the two",
            "leave --scores out",
        )
    if csv_file is not None:
        require_file(csv_file)
    names = _expanded(names)
    found = _scored(names, data, metric or (), limit) if data else _recorded(names, alone=not given)
    asked: Sequence[Prompt] = given[: limit or ASKED]
    answers: dict[str, list[str]] = {}
    rates: list[WinRate] = []
    if given or (len(names) == 2 and not scores and data is None):
        begin(f"loading {names[0]}", briefly=True)
        rates = _judged(names, judgements or ())
        asked, answers = _answers(names, asked, limit or ASKED, max_new_tokens)
    if csv_file is not None:
        csv_file.parent.mkdir(parents=True, exist_ok=True)
        replace(csv_file, found.csv().encode())
    if json:
        after_ = {line.name: dict(line.after) for line in found.lines}
        facts = {
            "prompts": asked,
            "answers": answers,
            "scores": {name: after_.get(name, {}) for name in names},
        }
        show_json({**facts, "judgements": [rate.json() for rate in rates], **found.json()})
    else:
        _show(asked, answers, found, rates)
    for text in found.warnings:
        talk(f"warning {text}")
    if csv_file is not None:
        talk(f"wrote   {csv_file}")
    after(f"graft chat {_best(found) or names[-1]}")


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


def _expanded(names: Sequence[str]) -> list[str]:
    """Return the names with the runs in folders of runs. Raises UsageError if there is nothing to compare."""
    from graft.runs.records import several

    found = [run for name in names for run in several(name)]
    if len(found) < 2:
        raise UsageError(
            f"{listed(found)} alone",
            "two or more runs or models, or a folder with several runs",
            f"name another one, or score this one: graft eval {found[0]}",
        )
    return found


def _recorded(names: Sequence[str], *, alone: bool) -> "Comparison":
    """Return the table of recorded scores.  alone: nothing else will be shown of more than two."""
    from graft.runs.table import recorded

    found = recorded(names)
    known = {line.name for line in found.lines}
    missing = [name for name in names if name not in known]
    if alone and len(names) > 2 and len(known) < 2:
        raise UsageError(
            f"{listed(missing)} record no scores",
            "two or more finished runs with held-out rows",
            "score them now with --data ROWS, or ask them with --prompt TEXT",
        )
    if known and missing:
        note(f"{listed(missing)}: no recorded scores, so the table is without")
    return found


def _scored(names: Sequence[str], data: str, metrics: Sequence[str], limit: int | None) -> "Comparison":
    """Return the table of the scores on these rows, which are measured now."""
    begin(f"loading {names[0]}", briefly=True)
    from graft.runs.open import open_model  # torch costs seconds
    from graft.runs.records import record_of
    from graft.runs.score import score, scoring_recipe
    from graft.runs.table import comparison, line_of

    lines = []
    for number, name in enumerate(names, 1):
        talk(f"score   {number} of {len(names)}   {name}")
        opened = open_model(name)
        scored = score(opened, scoring_recipe(opened, None, metrics, limit), data)
        del opened  # both together may not fit into memory
        rows, count = scored.coverage.fingerprint, scored.coverage.scored
        lines.append(line_of(name, record_of(name), scored.columns, rows, count))
    return comparison([line for line in lines if line is not None])


def _answers(
    names: Sequence[str], asked: "Sequence[Prompt]", limit: int, max_new_tokens: int
) -> "tuple[Sequence[Prompt], dict[str, list[str]]]":
    """Return the prompts, by default those of the first run, and the answers of each run or model."""
    from graft.runs.open import open_model  # torch costs seconds
    from graft.runs.score import prompts_of

    answers = {}
    for name in names:  # one after the other: all together may not fit into memory
        opened = open_model(name)
        asked = asked or prompts_of(opened, limit)
        answers[name] = opened.ask(asked, max_new_tokens=max_new_tokens)
        del opened
    return asked, answers


def _judged(names: Sequence[str], files: Sequence[Path]) -> "list[WinRate]":
    """Return what judges said of two runs; nothing of more."""
    if len(names) != 2:
        if files:
            raise UsageError(
                f"--judgements with {len(names)} names", "two runs or models", "rank several with graft rank"
            )
        return []
    from graft.runs.judged import judged_between  # torch costs seconds

    return judged_between(*names, files)


def _show(
    asked: "Sequence[Prompt]",
    answers: dict[str, list[str]],
    found: "Comparison",
    rates: "Sequence[WinRate]",
) -> None:
    """Print answers, scores and judgements."""
    for number, asked_ in enumerate(asked if answers else ()):
        from graft.runs.open import last_words  # late, as above

        texts = {name: written[number] for name, written in answers.items()}
        show(f"\n> {' '.join(last_words(asked_).split())}\n{side_by_side(texts, terminal_width())}")
    if found.lines:
        show(("\n" if answers else "") + comparison_text(found))
    for rate in rates:
        show(f"\n{_win_rate(rate)}")


def _best(found: "Comparison") -> str | None:
    """Return the run whose first metric is best; None without scores."""
    from graft.runs.table import best

    return best(found)


def _win_rate(rate: "WinRate") -> str:
    """Return what a judge says of both as a table, in the columns of their scores."""
    from graft.evaluate.leaderboard_text import interval

    prompts = rate.wins + rate.ties + rate.losses
    rows: list[list[Any]] = []
    if rate.won and rate.lost:
        sides = (rate.won, rate.lost)
        rows.append(["points won", *(f"{side.value:.1%}" for side in sides)])
        rows.append(["95 %", *(interval(side, ".1%") for side in sides)])
        for what, counts in (("won", (rate.wins, rate.losses)), ("tied", (rate.ties, rate.ties))):
            rows.append([f"prompts {what}", *(f"{n:,} of {prompts:,} ({n / prompts:.1%})" for n in counts)])
    if rate.unread:
        rows.append(["no verdict", f"{rate.unread:,} judgements", ""])
    return table([f"judge {rate.judge}".rstrip(), rate.first, rate.second], rows)
