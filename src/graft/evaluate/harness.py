"""Public benchmarks by lm-eval, EleutherAI's evaluation harness: a base, and the base with an adapter.

Tasks are lm-eval's (`arc_easy`, `hellaswag`, `mmlu`, ...) or files of one's own; prompts, few-shot examples,
metrics and standard errors are its own too. It is an extra: `pip install "graftlm[harness]"`.

No code comes with rows: the extra asks for a version of `datasets` that runs none. Tasks that run what the
model writes are refused.

    change = mean(after − before)        ± sd(after − before) / √n

The rows are the same before and after, so the error of a change is that of the differences, row by row: most
often much smaller than those of the two scores. It is known for metrics that are means over rows.
"""

import contextlib
import importlib.util
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from graft.base.base import Base
from graft.errors import AdapterError, DataError, UsageError, listed, nearest, one_of
from graft.evaluate.continuations import Told, silent
from graft.training import rng

SEED = 1234  # lm-eval's, of few-shot examples and of sampling


@dataclass(frozen=True)
class Score:
    """One metric of one task, or of a group of tasks.

    filter: how texts were read ("none", "strict-match", ...).  shots: examples in the prompt; None for groups
    with several numbers.  error: the standard error, None where lm-eval gives none.
    higher_is_better: None where lm-eval does not say.  count: how many rows were asked.
    rows: the metric of every row, in order; empty for a metric that is no mean over rows.
    """

    task: str
    metric: str
    filter: str
    shots: int | None
    value: float
    error: float | None
    higher_is_better: bool | None
    count: int
    rows: tuple[float, ...] = ()


class Benchmarks:
    """Tasks of lm-eval with their rows, which several models are asked.

    names: of tasks, groups or tags, with `*` for any letters; or YAML files.
    include_path: folders with tasks of one's own, which come first.
    num_fewshot: examples in every prompt; None for each task's number.  limit: at most so many rows of each.
    chat: prompts go through the tokenizer's chat template, few-shot examples as turns.
    Raises UsageError without lm-eval, or for an unknown task; DataError where its rows cannot be had.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        include_path: Sequence[str | Path] = (),
        num_fewshot: int | None = None,
        limit: int | None = None,
        chat: bool = False,
    ) -> None:
        require()
        for folder in include_path:
            if not Path(folder).is_dir():
                raise UsageError(f"{folder} is not a folder", "a folder with tasks as YAML", "check the path")
        manager, chosen = _found(names, [str(Path(folder)) for folder in include_path])
        with _seeded():
            found = [_loaded(manager, name) for name in chosen]
        try:
            self._tasks = manager.load(_distinct(found))
        except ValueError as error:
            raise UsageError(
                f"groups that share a task: {error}", "each task once", "leave one of them out"
            ) from error
        for task in self._tasks["tasks"].values():
            own = task.get_config("num_fewshot")
            if own is None or (num_fewshot is not None and own != 0):  # lm-eval keeps a task's 0
                task.set_config(key="num_fewshot", value=num_fewshot or 0)
        self._limit, self._chat = limit, chat

    def scores(
        self, base: Base, adapter: str | None = None, *, batch_size: int = 8, progress: Told = silent
    ) -> list[Score]:
        """Return the scores of a base with an adapter (None: the bare or merged base); groups first.

        progress: is called with (done, total) of the requests of one kind.
        Raises UsageError for a base or an adapter that writes no text.
        """
        # Late: an extra. Not simple_evaluate, which runs other programs to describe the machine, for seconds.
        from lm_eval.evaluator import evaluate

        from graft.evaluate.harness_model import HarnessModel  # late: it imports the extra

        _check(base, adapter, chat=self._chat)
        model = HarnessModel(base, adapter, batch_size=batch_size, progress=progress)
        for task in self._tasks["tasks"].values():
            if getattr(task, "UNSAFE_CODE", False):
                raise UsageError(
                    f"the task {task.task_name} runs what the model writes",
                    "tasks that only read it",
                    "run it by lm-eval itself, in a container",
                )
            task.set_fewshot_seed(seed=SEED)
        with _seeded():
            found = evaluate(
                model,
                self._tasks,
                limit=self._limit,
                apply_chat_template=self._chat,
                fewshot_as_multiturn=self._chat,
            )
        return _scores(found)


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    """Seed all generators as lm-eval does, and restore them after the block."""
    with rng.preserved():
        rng.seed(SEED)
        random.seed(0)
        yield


def require() -> None:
    """Raise UsageError unless lm-eval is installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise UsageError(
            "public benchmarks need the package lm-eval",
            "lm-eval installed",
            'pip install "graftlm[harness]"',
        )


def _scores(found: Any) -> list[Score]:
    """Return what lm-eval found as scores."""
    scores = []
    for task, values in found["results"].items():
        better = found["higher_is_better"].get(task) or {}
        shots = found["n-shot"].get(task)
        for key, value in values.items():
            metric, comma, filter_ = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = values.get(f"{metric}_stderr,{filter_}")
            scores.append(
                Score(
                    task,
                    metric,
                    filter_,
                    shots if isinstance(shots, int) else None,
                    float(value),
                    float(error) if isinstance(error, int | float) else None,
                    better.get(metric),
                    int(values.get("sample_len") or 0),
                    _rows(found["samples"].get(task, ()), metric, filter_, float(value)),
                )
            )
    return scores


def _rows(samples: Sequence[Any], metric: str, filter_: str, value: float) -> tuple[float, ...]:
    """Return the metric of every row, or nothing unless `value` is its mean."""
    try:
        rows = [float(sample[metric]) for sample in samples if sample["filter"] == filter_]
    except (KeyError, TypeError, ValueError):  # a row's part of a metric may be anything
        return ()
    return tuple(rows) if rows and math.isclose(fmean(rows), value, abs_tol=1e-9) else ()


def change(before: Score, after: Score) -> tuple[float, float | None]:
    """Return by how much a score changed, and the standard error of that; None where it is not known.

    The error is that of the differences row by row, since both are about the same rows.
    """
    differences = [b - a for a, b in zip(before.rows, after.rows, strict=False)]
    if len(differences) < 2 or len(before.rows) != len(after.rows):
        return after.value - before.value, None
    return after.value - before.value, stdev(differences) / math.sqrt(len(differences))


def _found(names: Sequence[str], folders: list[str]) -> tuple[Any, list[str]]:
    """Return a manager of tasks that knows all of these names, and the names without patterns.

    Reading the thousands of files that come with lm-eval takes seconds, so it is done only where needed.
    """
    from lm_eval.tasks import TaskManager  # late: an extra

    files = [name for name in names if Path(name).suffix == ".yaml" and Path(name).is_file()]
    wanted = [name for name in names if name not in files]
    for defaults in (False, True):
        manager = TaskManager(include_path=folders or None, include_defaults=defaults)
        matches = {name: list(manager.match_tasks([name])) for name in wanted}
        whole = (_whole(manager, task) for found in matches.values() for task in found)
        if all(matches.values()) and (defaults or all(whole)):
            break
    else:
        unknown = [name for name, found in matches.items() if not found]
        raise UsageError(
            f"lm-eval has no task {listed(map(repr, unknown))}",
            "a task, group or tag of lm-eval, or of a folder given by --include-path",
            f"did you mean {listed(map(repr, nearest(unknown[0], manager.all_tasks)), 3)}?",
        )
    return manager, [*files, *dict.fromkeys(task for found in matches.values() for task in found)]


def _whole(manager: Any, name: str) -> bool:
    """Return whether the members of a group are known; a task has none."""
    members = manager.task_index[name].cfg["task"] if name in manager.all_groups else ()
    return all(member in manager.task_index for member in members if isinstance(member, str))


def _loaded(manager: Any, name: str) -> Any:
    """Return a task, a group or the tasks of a tag with their rows, as lm-eval's TaskDict."""
    try:
        return manager.load([name])
    except Exception as error:
        # lm-eval, its tasks' own code and `datasets` raise whatever they like: no connection is an OSError, a
        # folder without files a ValueError, a package that a task needs an ImportError.
        first = (str(error).splitlines() or [""])[0]
        raise DataError(
            f"the task {name} cannot be loaded: {type(error).__name__}: {first}",
            "its rows in the cache of Hugging Face's datasets, or a connection; and the packages it needs",
            "run it once with a connection, or give tasks on files of yours by --include-path",
        ) from error


def _distinct(found: Sequence[Any]) -> list[Any]:
    """Return the outermost groups of several TaskDicts, and the tasks that are in none of them."""
    inner = {child for one in found for children in one["group_map"].values() for child in children}
    groups = {name: group for one in found for name, group in one["groups"].items() if name not in inner}
    grouped = {task.task_name for group in groups.values() for task in group.get_all_tasks()}
    tasks = {name: task for one in found for name, task in one["tasks"].items() if name not in grouped}
    return [*groups.values(), *tasks.values()]


def _check(base: Base, adapter: str | None, *, chat: bool) -> None:
    """Raise UsageError unless the base writes text under this adapter, by its tokenizer.

    Raises AdapterError for an adapter that is not there.
    """
    if adapter is not None:
        one_of("adapter", adapter, base.adapters, AdapterError)
    if base.family != "causal" or base.looks_ahead:
        raise UsageError(f"benchmarks for {base.name}", "a causal model", "load one that writes")
    if base.tokenizer is None or base.tokenizer.eos_token_id is None:
        raise UsageError(
            f"{base.name} has no tokenizer with an end token", "a base with one", "load it with its tokenizer"
        )
    if adapter is not None and base.adapters[adapter].head is not None:
        raise UsageError(
            f"benchmarks for {adapter}, which answers by a task head",
            "an adapter that writes text",
            "score it on rows: --data ROWS",
        )
    if chat and not getattr(base.tokenizer, "chat_template", None):
        raise UsageError(
            f"{base.name} has no chat template", "a tokenizer with one", "leave --apply-chat-template out"
        )
