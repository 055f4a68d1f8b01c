"""The part of graft eval that asks public benchmarks: `--tasks arc_easy,hellaswag`."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from graft.cli.say import after, show, show_json, table, talk
from graft.cli.wait import begin
from graft.errors import UsageError

if TYPE_CHECKING:
    from graft.evaluate.harness import Score

STEP = 20  # lines of progress for each kind of request


def run(model: str, adapters: Sequence[str], quant: str | None, tasks: dict[str, Any], *, json: bool) -> None:
    """Print the scores of the bare base, and those with the adapter next to them.

    model, adapters, quant: of `open_model`.  tasks: the keywords of `Benchmarks`.
    """
    if not tasks["names"]:
        raise UsageError(
            "--tasks names nothing", "tasks of lm-eval", "for example --tasks arc_easy,hellaswag"
        )
    begin(f"loading {model}")
    from graft.evaluate.harness import Benchmarks  # torch costs seconds
    from graft.planning.fit import require_tokenizer
    from graft.runs.open import open_model

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    benchmarks = Benchmarks(**tasks)
    opened = open_model(model, adapters=adapters, quant=quant)
    base = opened.base
    require_tokenizer(base.tokenizer, base.name, base.vocabulary)
    names = {"before": None, "after": opened.adapter} if opened.adapter else {"score": None}
    columns = {}
    for title, name in names.items():
        columns[title] = benchmarks.scores(base, name, progress=_Progress(name or base.name))
    if json:
        show_json({"scores": _facts(columns)})
    else:
        show(table(*_cells(columns)))
    after(f"graft chat {model}")


class _Progress:
    """Says now and then how far a model is."""

    def __init__(self, name: str) -> None:
        self._name, self._said = name, 0

    def __call__(self, done: int, total: int) -> None:
        part = done * STEP // max(total, 1)
        if part != self._said:
            self._said = part
            talk(f"asked   {self._name}: {done:,} of {total:,}")


def _facts(columns: "dict[str, list[Score]]") -> list[dict[str, Any]]:
    """Return each metric of each task with its value and error in every column, and the change."""
    from graft.evaluate.harness import change

    facts = []
    for row in zip(*columns.values(), strict=True):
        first = row[0]
        fact: dict[str, Any] = {
            "task": first.task,
            "metric": first.metric,
            "filter": first.filter,
            "num_fewshot": first.shots,
            "rows": first.count,
            "higher_is_better": first.higher_is_better,
        }
        for title, score in zip(columns, row, strict=True):
            fact[title] = {"value": score.value, "stderr": score.error}
        if len(row) == 2:
            value, error = change(*row)
            fact["change"] = {"value": value, "stderr": error}
        facts.append(fact)
    return facts


def _cells(columns: "dict[str, list[Score]]") -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the table."""
    facts = _facts(columns)
    numbers = [*columns, *(["change"] if len(columns) == 2 else [])]
    filtered = any(fact["filter"] != "none" for fact in facts)
    header = ["task", "rows", "shots", "metric", *(["filter"] if filtered else []), *numbers]
    return header, [
        [
            fact["task"],
            f"{fact['rows']:,}",
            "-" if fact["num_fewshot"] is None else str(fact["num_fewshot"]),
            fact["metric"] + {True: " ↑", False: " ↓", None: ""}[fact["higher_is_better"]],
            *([fact["filter"]] if filtered else []),
            *(_number(**fact[title], signed=title == "change") for title in numbers),
        ]
        for fact in facts
    ]


def _number(value: float, stderr: float | None, *, signed: bool) -> str:
    """Return a value with its standard error, if it is known."""
    text = f"{value:+.4f}" if signed else f"{value:.4f}"
    return text if stderr is None else f"{text} ± {stderr:.4f}"
