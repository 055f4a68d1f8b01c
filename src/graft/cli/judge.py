"""graft judge: compare answers of files, runs and models, in both orders, and write the judgements."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graft.cli.compare import prompt_lines
from graft.cli.say import after, note, show, show_json, table, talk
from graft.cli.wait import begin
from graft.errors import DataError, UsageError, listed
from graft.storage import require_file

if TYPE_CHECKING:
    from graft.evaluate.answer_files import Answers
    from graft.evaluate.judgements import Judgement
    from graft.evaluate.judges import Judge

BY = (
    "me or me:NAME; reward:RUN; rule:shorter, rule:rouge_l, ...; module:function; or http://127.0.0.1:8000/v1"
)

ME = "me"
PROMPTS = 80  # that a run's rows give where nothing else does


def add_to(app: typer.Typer) -> None:
    app.command("judge", help="Compare answers pair by pair, in both orders.")(judge)


def judge(
    answers: Annotated[
        list[str], typer.Argument(help='Files with {"prompt", "answer"} rows, runs, adapters or models.')
    ],
    by: Annotated[str, typer.Option(help=f"Who judges: {BY}.")],
    out: Annotated[
        Path, typer.Option(help="Where the judgements go; verdicts are kept beside it as they come.")
    ] = Path("judgements.jsonl"),
    model: Annotated[
        str | None, typer.Option(help="The judge's name at the address; its key is GRAFT_JUDGE_KEY.")
    ] = None,
    form: Annotated[
        str, typer.Option(help="What the address is asked for: pair (a verdict) or scores (marks).")
    ] = "pair",
    prompts: Annotated[
        Path | None, typer.Option(help="What runs and models are asked: a text file, a prompt a line.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of their answers.")] = 256,
    limit: Annotated[int | None, typer.Option(min=1, help="Maximum number of prompts for each pair.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Requests at the same time.")] = 4,
    timeout_s: Annotated[float, typer.Option(min=1, help="Seconds to wait for an answer.")] = 120,
    seed: Annotated[int, typer.Option(min=0, help="Decides which order you see, with --by me.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace the file of judgements.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the same facts for programs.")] = False,
) -> None:
    require_file(out)
    page = out.with_suffix(".report.html")
    if there := [path for path in (out, page) if path.exists() and not force]:
        raise UsageError(f"{there[0]} exists", "a new file", "give another --out, or --force")
    begin("reading answers", briefly=True)
    from graft.evaluate.answer_files import without_partner  # torch costs seconds
    from graft.evaluate.judgements import lines
    from graft.evaluate.judges import judged
    from graft.storage import replace

    out.parent.mkdir(parents=True, exist_ok=True)
    chosen = _judge(by, model, form, out, {"workers": workers, "timeout_s": timeout_s})
    read = _answers(answers, prompts, limit, max_new_tokens, out)
    if len(read) < 2:
        raise UsageError(
            f"answers of {len(read)} model", "answers of two or more models", "give one file for each model"
        )
    for text in without_partner(read):
        note(text)
    judgements = judged(read, chosen, model or by, limit, once=seed if by.partition(":")[0] == ME else None)
    if not judgements:
        raise UsageError("no pair was judged", "at least one verdict", "run the same command again")
    replace(out, lines(judgements).encode())
    drawn = _draw(page, judgements, read)
    if json:
        pairs = [_facts(*one) for one in _pairs(judgements)]
        show_json(
            {"file": str(out), "page": str(page) if drawn else None, "judge": model or by, "pairs": pairs}
        )
    else:
        show(table(("answers", "against", "wins", "ties", "losses", "no verdict", "won"), _rows(judgements)))
        talk(f"wrote   {out} ({len(judgements):,} judgements by {model or by})")
        if drawn:
            talk(f"wrote   {page}")
        if (cache := _cache(out)).exists():
            talk(f"kept    {cache}: with --force the same command goes on, and asks nothing twice")
    after(f"graft rank {out}")


def _answers(
    names: list[str], prompts: Path | None, limit: int | None, max_new_tokens: int, out: Path
) -> "Answers":
    """Return the answers of files, and those that runs and models write now, which are kept beside `out`.

    They are asked the prompts of `prompts`, else those of the files, else what the first run's rows ask.
    """
    from graft.data.folders import kind_of
    from graft.evaluate.answer_files import answer_lines, as_text, prompts_in, read_answers, written
    from graft.runs.open import open_model
    from graft.runs.score import prompts_of
    from graft.storage import replace

    read = read_answers(*(name for name in names if kind_of(Path(name))))
    models = list(dict.fromkeys(name for name in names if not kind_of(Path(name))))
    asked = [*(prompt_lines(prompts) or prompts_in(read))][:limit]
    own: Answers = {}
    for name in models:  # one after the other: all together may not fit into memory
        opened = open_model(name)
        asked = asked or [*prompts_of(opened, limit or PROMPTS)]
        asked = list({as_text(prompt): prompt for prompt in asked}.values())
        own[name] = written(asked, opened.ask(asked, max_new_tokens=max_new_tokens), name)
        talk(f"wrote   {len(asked):,} answers of {name}")
        del opened
    if both := set(read) & set(own):
        raise UsageError(
            f"answers of {listed(sorted(both))} come from a file and from the model",
            "one of the two",
            'leave one out, or rename the model in the file\'s column "model"',
        )
    if own:
        replace(out.with_suffix(".answers.jsonl"), answer_lines(own).encode())
    return {**read, **own}


def _draw(page: Path, judgements: list["Judgement"], answers: "Answers") -> bool:
    """Write the page of judgements. Says why, and returns False, where they make no leaderboard."""
    from graft.evaluate.leaderboard import leaderboard
    from graft.runs.report.judgements import judgement_page
    from graft.storage import replace

    try:
        board = leaderboard(judgements)
    except DataError as error:
        note(f"{page} is not written: {error.given}")
        return False
    title = f"graft judge, {page.name.removesuffix('.report.html')}"
    replace(page, judgement_page(title, board, judgements, answers).encode(errors="replace"))
    return True


def _judge(by: str, model: str | None, form: str, out: Path, settings: dict[str, Any]) -> "Judge":
    """Return the judge that --by names. Raises UsageError if there is none such."""
    from graft.evaluate.endpoint import Endpoint, by_endpoint  # torch costs seconds
    from graft.evaluate.judges import by_function, by_rule, marks
    from graft.evaluate.person import by_person

    cache = _cache(out)
    if by.startswith(("http://", "https://")):
        if model is None:
            raise UsageError(f"--by {by}", "--model NAME as well", "name the model that judges there")
        return by_endpoint(Endpoint(by, model, cache, **settings), form, _progress)
    kind, _, name = by.partition(":")
    if model is not None or form != "pair":
        raise UsageError(f"--model or --form with --by {by}", "an address", "leave them out")
    if kind == ME:
        return by_person(_ask, talk, cache, by)
    if kind == "reward":
        from graft.runs.reward import rewards_of

        return marks(rewards_of(name))
    if kind == "rule":
        return by_rule(name)
    if not name:
        raise UsageError(f"--by {by}", f"one of {BY}", "name a judge of one of these kinds")
    return by_function(by)


def _cache(out: Path) -> Path:
    """Return the file of what people and addresses answered."""
    return out.with_name(f"{out.name}.cache")


def _ask(line: str) -> str:
    """Return what a person types after a line, which is no result and goes to stderr."""
    print(line, end="", file=sys.stderr, flush=True)
    return input()


def _progress(what: str, done: int, total: int) -> None:
    """Say now and then how far the judging is."""
    if done == total or done % 20 == 0:
        talk(f"{what}  {done:,} of {total:,}")


def _pairs(judgements: list["Judgement"]) -> list[tuple[tuple[str, str], list["Judgement"]]]:
    """Return the judgements of each pair of models."""
    pairs: dict[tuple[str, str], list[Judgement]] = {}
    for one in judgements:
        pairs.setdefault(one.pair, []).append(one)
    return sorted(pairs.items())


def _facts(pair: tuple[str, str], judgements: list["Judgement"]) -> dict[str, Any]:
    """Return how often the first model of a pair won, tied and lost, and its share of the points."""
    points = [one.points_of_pair for one in judgements]
    decided = [value for value in points if value is not None]
    counts = {word: points.count(value) for word, value in (("wins", 1.0), ("ties", 0.5), ("losses", 0.0))}
    won = sum(decided) / len(decided) if decided else None
    return {"answers": pair[0], "against": pair[1], **counts, "no_verdict": points.count(None), "won": won}


def _rows(judgements: list["Judgement"]) -> list[list[str]]:
    """Return the table's rows, one for each pair of models."""
    rows = []
    for one in _pairs(judgements):
        *cells, won = _facts(*one).values()
        rows.append([*map(str, cells), "-" if won is None else f"{won:.1%}"])
    return rows
