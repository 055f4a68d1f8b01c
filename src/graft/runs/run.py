"""Carry out a recipe: base, adapter, data, training, scores, report; the same call continues a stopped run.

A run's folder receives recipe.yaml (which repeats the run, in the same number format), data_report.json,
metrics.jsonl, checkpoints/, samples.md, adapter/ with tokenizer and template, evaluation.json and
report.html; and model/, if the weights were random at first.

From `graft train` to the equation: cli/train.py calls `run` here, which hands its work to training/loop.py;
there training/step.py computes the mean loss of a step from the stage's loss, for most stages that of
objectives/lm.py.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from graft import seedling, storage
from graft.base.adapter import Adapter
from graft.base.base import Base
from graft.data import DataReport, Prepared, prepare
from graft.data.feed import Feed
from graft.errors import DataError, UsageError, notice
from graft.evaluate import losses
from graft.evaluate.coverage import fingerprint
from graft.evaluate.usable import WRITING, check_metrics, obstacle
from graft.models.dtype import AUTO, FORMATS
from graft.models.load import DTYPES
from graft.planning.fit import fitting, of_adapter, positions_taken, require_tokenizer
from graft.recipe import Recipe, read
from graft.runs.build import feed, grown, load_base, settled, settled_on
from graft.runs.effect import without_effect
from graft.runs.hear import heard
from graft.runs.identity import as_begun, claim, identity, require_same_settings
from graft.runs.open import Opened
from graft.runs.page import report
from graft.runs.score import chosen_rows, score_rows
from graft.shipping.export import export
from graft.stages.stage import Stage, Start, methods_of, stage_of
from graft.training import Observer, Task, Trainer
from graft.training.lock import locked

SHOWN = 20  # generated texts that evaluation.json keeps


class RunObserver(Observer):
    """An observer of training that also receives what happens before and after it."""

    def begin(self, facts: dict[str, Any]) -> None:
        """Receive what will be trained: base, parameters, dtype, stored; methods, sites, trained."""

    def note(self, text: str) -> None:
        """Receive something that the user must know: a setting, row or model that is not used as it stands.

        An observer without this method of its own leaves notes to Python's warnings (`graft.Notice`).
        """

    def data(self, report: DataReport) -> None:
        """Receive the data report, before the first step."""

    def scoring(self) -> None:
        """Receive the start of scoring: the held-out rows, before and after training."""


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    folder, adapter: its folder and the adapter's.  loss: of the last step.
    tokens: supervised ones, of all steps.
    scores: {"before": {metric: value}, "after": ...}.  coverage: which rows they are about, and how many.
    model: the folder of a model that started from random weights.
    notes: what the observer was told by `note`.  trained: False if the run had ended before.
    """

    folder: Path
    adapter: Path
    steps: int
    loss: float | None
    tokens: int
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    model: Path | None = None
    coverage: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list, compare=False)
    trained: bool = field(default=True, compare=False)

    def facts(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        paths = {
            "folder": str(self.folder),
            "adapter": str(self.adapter),
            "model": str(self.model) if self.model else None,
        }
        counts = {"steps": self.steps, "trained": self.trained, "loss": self.loss, "tokens": self.tokens}
        rows = {"scores": self.scores, "coverage": self.coverage}
        return {**paths, **counts, **rows, "notes": self.notes}


def run(
    recipe: str | Path | dict[str, Any] | Recipe,
    overrides: Iterable[str] = (),
    observer: RunObserver | None = None,
) -> RunResult:
    """Carry out a recipe, from the beginning or from the newest checkpoint in its output folder.

    overrides: "key=value" changes of the recipe.  observer: receives what happens.
    Raises UsageError for a recipe with wrong settings, DataError for rows that cannot be used,
    CheckpointError for a folder that is in use or belongs to another run, TrainingError for a step that
    failed.
    """
    understood: list[str] = []
    chosen = as_begun(read(recipe, overrides, understood))
    observer = observer or RunObserver()
    folder = Path(chosen.output)
    # Before anything is loaded: a second process must learn at once that the folder is in use.
    with locked(folder):
        require_same_settings(folder, chosen)
    with heard(_note_of(observer)) as notes:
        for text in understood:
            notice(text)
        chosen = settled(chosen)
        base = load_base(chosen)
        name = folder.resolve().name
        if chosen.adapter is not None:
            adapter = base.load_adapter(chosen.adapter, name)
            chosen = of_adapter(chosen, adapter.methods)
        return _train(base, name, chosen, observer, notes)


def train(
    base: Base,
    adapter: Adapter,
    data: str | Path | Sequence[str | Path] | Mapping[str, Any],
    *,
    output: str | Path | None = None,
    stage: str | Mapping[str, Any] = "sft",
    objective: str | None = None,
    evaluate: Mapping[str, Any] | None = None,
    observer: RunObserver | None = None,
    **train: Any,
) -> RunResult:
    """Train an attached adapter on rows: the same run as a recipe's, with a base that is already loaded.

    data: a path, several paths, or the keys of a recipe's `data:`.
    output: the run's folder, by default runs/ and the adapter's name.
    stage, objective, evaluate: as in a recipe.  observer: receives what happens.
    train: keys of a recipe's `train:` (epochs=2, lr=1e-4, ...).  Raises as `run` does.
    """
    if not isinstance(data, Mapping):
        data = {"train": data}
    data = {key: _named(value) if key in ("train", "eval", "test") else value for key, value in data.items()}
    methods = [{"name": method.name(), **method.config()} for method in adapter.methods]
    settings: dict[str, Any] = {
        "model": base.name or "given",
        "dtype": next((word for word in FORMATS if DTYPES[word] == base.dtype), AUTO),
        "method": methods if len(methods) > 1 else methods[0],
        "stage": stage if isinstance(stage, str) else dict(stage),
        **({} if objective is None else {"objective": objective}),
        "data": dict(data),
        "train": train,
        "output": str(output or f"runs/{adapter.name}"),
    }
    chosen = read(settings | ({"evaluate": dict(evaluate)} if evaluate is not None else {}))
    require_same_settings(Path(chosen.output), chosen)
    observer = observer or RunObserver()
    with heard(_note_of(observer)) as notes:
        return _train(base, adapter.name, settled_on(base, adapter, chosen), observer, notes)


def _note_of(observer: RunObserver) -> Callable[[str], None] | None:
    """Return what receives notes; None for an observer that does not say what to do with them."""
    return None if type(observer).note is RunObserver.note else observer.note


def _named(rows: Any) -> Any:
    """Return the names of rows as a recipe has them. Raises DataError for rows themselves."""
    several = isinstance(rows, list | tuple)
    for name in rows if several else [rows]:
        if not isinstance(name, str | Path | float | int | None):
            raise DataError(
                f"data holds an object of type {type(name).__name__}: rows in memory",
                "files, folders or hub names of rows",
                "write them into a file, one row of JSON a line (rows.jsonl), and give its path",
            )
    names = [str(name) if isinstance(name, Path) else name for name in (rows if several else [rows])]
    return names if several else names[0]


@dataclass(frozen=True)
class _Work:
    """Everything that a run works with.

    adapter: its name.  given: the recipe as it was given.  recipe: the same, as far as the model can take it.
    prepared: the encoded rows.  opened: base and adapter, to ask and to score.  start: of training.
    """

    base: Base
    adapter: str
    given: Recipe
    recipe: Recipe
    stage: Stage
    prepared: Prepared
    folder: Path
    opened: Opened
    start: Start


def _train(base: Base, name: str, recipe: Recipe, observer: RunObserver, notes: list[str]) -> RunResult:
    """Prepare the rows, attach the adapter if it is new, train it, and write the results.

    notes: grows while the run is going on.
    """
    work = _prepared(base, name, recipe)
    facts = identity(work.given, base, work.prepared)
    _write(work, facts)
    _announce(observer, work)
    task = _task(work, facts)
    trained_before = (work.folder / "finished.json").exists()
    Trainer(base, name, task, recipe.train, work.folder, observer).run()
    if trained_before:  # no step was taken now: the trained adapter is in the folder
        notice(f"nothing is left to train: the run in {work.folder} has ended")
        tensors = load_file(work.folder / "adapter" / "adapter_model.safetensors")
        base.adapters[name].load_file_state(tensors)
    else:
        storage.write_json(work.folder / "notes.json", notes)
    return replace(_finish(work, observer), notes=notes, trained=not trained_before)


def _prepared(base: Base, name: str, recipe: Recipe) -> _Work:
    """Encode the rows, and attach the adapter if it is new."""
    stage, given = stage_of(recipe), recipe
    stage.check_base(base)
    check_metrics(recipe.evaluate.metrics, stage, base.family)
    size = base.vocabulary
    require_tokenizer(base.tokenizer, base.name, size)
    config = base.model.config
    taken = base.positions([name]) if name in base.adapters else positions_taken(recipe, config)
    recipe = fitting(recipe, config, taken)
    settings = seedling.located(recipe.data)
    prepared = prepare(settings, base.tokenizer, stage, family=base.family, vocabulary=size)
    if prepared.template is not None:
        base.tokenizer.chat_template = prepared.template
    new = name not in base.adapters
    if new:
        torch.manual_seed(recipe.train.seed)  # the new adapter's values follow from the seed
        base.attach(name, methods_of(recipe, prepared.labels, tagged=prepared.tagged))
    elif recipe.adapter is not None:
        methods = stage.methods(base.adapters[name].methods, prepared.labels, tagged=prepared.tagged)
        grown(base, name, methods, seed=recipe.train.seed)
    stage.fit(base.adapters[name], prepared.labels, tagged=prepared.tagged)
    folder = Path(recipe.output)
    opened = Opened(base, name, recipe, folder, stage.asks_by_template(settings))
    _check_samples(opened, recipe)
    start = Start(name, newborn=new and all(method.newborn for method in base.adapters[name].methods))
    return _Work(base, name, given, recipe, stage, prepared, folder, opened, start)


def _check_samples(opened: Opened, recipe: Recipe) -> None:
    """Raise UsageError for a prompt of train.samples that the model cannot be asked."""
    base = opened.base
    if not recipe.train.samples or base.adapters[str(opened.adapter)].head is not None:
        return
    if base.family not in WRITING:
        raise UsageError(f"train.samples on a {base.family} model", "a model that writes", "leave them out")
    for text in recipe.train.samples:
        if bad := obstacle(base, opened.prompt(text), opened.context()):
            reason, detail, remedy = bad.args
            given = f"train.samples has the prompt {text[:40]!r}: {reason}: {detail}"
            raise UsageError(given, "prompts that the model can be asked", remedy)


def _write(work: _Work, identity: Mapping[str, Any]) -> None:
    """Write what is known before the first step. Raises CheckpointError in the folder of another run."""
    folder, report = work.folder, work.prepared.report
    claim(folder, dict(identity))
    storage.replace(folder / "recipe.yaml", work.given.yaml().encode())
    facts = report.json() | {"asks_by_template": work.opened.by_template}
    storage.replace(folder / "data_report.json", storage.encode(facts))
    if report.rejects:
        report.write_rejects(folder / "rejected.jsonl")


def _task(work: _Work, identity: Mapping[str, Any]) -> Task:
    """Return what the training loop needs: batches, loss, evaluation and samples.  identity: of the run."""
    base = work.base
    recipe = work.recipe
    prepared = work.prepared
    size = recipe.evaluate.batch_size
    prompts = recipe.train.samples
    feeds: Mapping[str, Feed] = {
        "train": feed(base, recipe, prepared.train, recipe.train.batch_size, recipe.train.micro_batch_size),
        "eval": feed(base, recipe, prepared.eval or [], size, size),
    }
    feeds = work.stage.before_training(base, work.start, feeds, work.folder, identity)

    def evaluate(step: int) -> dict[str, float]:
        with base.using(work.adapter):
            return losses(base, feeds["eval"], work.stage)

    def sample() -> list[str]:
        answers = work.opened.ask(prompts, max_new_tokens=recipe.train.sample_tokens)
        return [f"{prompt}\n\n{answer}" for prompt, answer in zip(prompts, answers, strict=True)]

    return Task(
        feed=feeds["train"],
        objective=work.stage.loss,
        evaluate=evaluate if prepared.eval else None,
        sample=sample if prompts else None,
        identity=identity,
        before_step=work.stage.before_step,
        progress=work.stage.progress,
    )


def _announce(observer: RunObserver, work: _Work) -> None:
    """Tell the observer what will be trained, and on which rows."""
    base, recipe = work.base, work.recipe
    adapter = base.adapters[work.adapter]
    observer.begin(
        {
            "base": base.name,
            "parameters": base.count(),
            "dtype": recipe.dtype,
            "stored": recipe.dtype if recipe.quant == "none" else recipe.quant,
            "methods": [method.name() for method in adapter.methods],
            "sites": len(adapter.inserts),
            "trained": adapter.count(),
        }
    )
    for text in adapter.notices():
        notice(text)
    if recipe.data.pack and work.stage.packs and (obstacle := base.unpackable(recipe.data.max_length)):
        notice(f"rows are padded, not packed: {obstacle}")
    for text in without_effect(recipe, work.stage, base, adapter, work.prepared):
        notice(text)
    observer.data(work.prepared.report)


def _finish(work: _Work, observer: RunObserver) -> RunResult:
    """Write what is missing of tokenizer, scores, model folder and report; return the result."""
    base = work.base
    folder = work.folder
    recipe = work.recipe
    if not (folder / "adapter" / "tokenizer_config.json").exists():
        _add_tokenizer(folder / "adapter", base.tokenizer)
    chosen = chosen_rows(recipe)
    asked = {"settings": recipe.evaluate.model_dump(), "rows": fingerprint(chosen.rows)}
    record = folder / "evaluation.json"
    if not record.exists() or asked != {key: storage.read_json(record).get(key) for key in asked}:
        if chosen.rows:
            observer.scoring()
        table = score_rows(work.opened, recipe, chosen)
        facts = {"columns": table.columns, "texts": table.texts[:SHOWN], "coverage": table.coverage.json()}
        facts |= {"curves": table.curves} if table.curves else {}
        storage.write_json(record, facts | asked)  # keeps the order of the columns
    if recipe.fresh and not (folder / "model").exists():
        export(base, folder / "model", to="hf", adapter=work.adapter)
    storage.replace(folder / "report.html", report(folder).encode())
    return _result(folder, recipe)


def _result(folder: Path, recipe: Recipe) -> RunResult:
    """Return the result that a finished run's folder records."""
    finished = storage.read_json(folder / "finished.json")
    evaluation = storage.read_json(folder / "evaluation.json")
    return RunResult(
        folder=folder,
        adapter=folder / "adapter",
        steps=finished["steps"],
        loss=finished["loss"],
        tokens=finished["tokens"],
        scores=evaluation["columns"],
        coverage=evaluation["coverage"],
        model=folder / "model" if recipe.fresh else None,
    )


def _add_tokenizer(adapter: Path, tokenizer: Any) -> None:
    """Commit the adapter's folder again, with the tokenizer and the chat template in it."""
    kept = {
        path.name: path.read_bytes()
        for path in adapter.iterdir()
        if path.is_file() and path.name != storage.MANIFEST
    }

    def fill(folder: Path) -> None:
        for name, data in kept.items():
            storage.write(folder / name, data)
        tokenizer.save_pretrained(folder)

    storage.commit(adapter, fill)
