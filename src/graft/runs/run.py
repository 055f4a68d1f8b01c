"""Carry out a recipe: base, adapter, data, training, scores, report; the same call continues a stopped run.

A run's folder receives recipe.yaml (which repeats the run, in the same number format), data_report.json,
metrics.jsonl, checkpoints/, samples.md, adapter/ with tokenizer and template, evaluation.json and
report.html; and model/, if the weights were random at first.

From `graft train` to the equation: cli/train.py calls `run` here, which hands its work to training/loop.py;
there training/step.py computes the mean loss of a step from the stage's loss, for most stages that of
objectives/lm.py.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from graft import seedling, storage
from graft.base.adapter import Adapter
from graft.base.base import Base
from graft.data import Prepared, prepare
from graft.data.feed import Feed
from graft.errors import DataError, UsageError, notice
from graft.evaluate import losses
from graft.evaluate.coverage import fingerprint
from graft.evaluate.usable import WRITING, check_metrics, obstacle
from graft.formats import peft
from graft.models.dtype import AUTO, FORMATS
from graft.models.load import DTYPES
from graft.planning.fit import fitting, of_adapter, positions_taken, require_tokenizer
from graft.recipe import Recipe, read
from graft.runs.build import feed, grown, load_base, scoring_feed, settled, settled_on
from graft.runs.circumstances import note_end, note_start, trained_on
from graft.runs.effect import without_effect
from graft.runs.hear import Notes, RunObserver, heard, note_of
from graft.runs.identity import as_begun, claim, identity, require_same_settings
from graft.runs.open import Opened
from graft.runs.page import report
from graft.runs.result import SCORES, RunResult, has_finished, recorded_scores, result_of
from graft.runs.score import chosen_rows, score_rows
from graft.shipping.export import export
from graft.stages.online import Online
from graft.stages.stage import Stage, Start, methods_of, stage_of
from graft.storage.signals import obeyed, stopped
from graft.training import Task, Trainer
from graft.training.log import evaluations
from graft.training.rollouts import Rollouts

SHOWN = 20  # generated texts that evaluation.json keeps
# What to say of a signal before the first step of this start, and after the last one.
NOTHING_LOST = ("no step is lost", "run the same command again: it begins or continues the run")
TRAINED = ("the trained adapter is saved", "run the same command again: it makes scores and report")


def run(
    recipe: str | Path | dict[str, Any] | Recipe,
    overrides: Iterable[str] = (),
    observer: RunObserver | None = None,
) -> RunResult:
    """Carry out a recipe, from the beginning or from the newest checkpoint in its output folder.

    overrides: "key=value" changes of the recipe.  observer: receives what happens.
    Raises UsageError for a recipe with wrong settings, DataError for rows that cannot be used,
    CheckpointError for a folder that is in use or belongs to another run, TrainingError for a step that
    failed, MachineError for errors of the system (SpaceError if the disk is full).
    """
    understood: list[str] = []
    return carry_out(read(recipe, overrides, understood), observer, understood=understood)


@storage.named_errors("while training")
def carry_out(
    chosen: Recipe,
    observer: RunObserver | None = None,
    *,
    understood: Sequence[str] = (),
    load: Callable[[Recipe], Base] = load_base,
    lock: storage.Lock | None = None,
) -> RunResult:
    """Carry out a recipe that has been read; see `run`.

    understood: what to note of its reading.  load: returns its base.  lock: of the run's folder, where the
    caller holds it.
    """
    folder = Path(chosen.output)
    storage.require_run_folder(folder)
    # One lock from the first look at the folder until the report is written: no other process comes between,
    # and a second one learns at once that the folder is in use.
    observer = observer or RunObserver()
    with obeyed(), storage.locked(folder, lock) as lock, heard(note_of(observer)) as notes:
        with stopped(*NOTHING_LOST):
            chosen = as_begun(chosen)
            stage_of(chosen).check_complete()
            require_same_settings(folder, chosen)
            for text in understood:
                notice(text)
            chosen = settled(chosen)
            base = load(chosen)
            name = folder.resolve().name
            if chosen.adapter is not None:
                adapter = base.load_adapter(chosen.adapter, name)
                chosen = of_adapter(chosen, adapter.methods, base.sites)
        return _train(base, name, chosen, observer, notes, lock)


@storage.named_errors("while training")
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
    stage_of(chosen).check_complete()
    storage.require_run_folder(Path(chosen.output))
    observer = observer or RunObserver()
    folder = Path(chosen.output)
    with obeyed(), storage.locked(folder) as lock, heard(note_of(observer)) as notes:
        with stopped(*NOTHING_LOST):
            require_same_settings(folder, chosen)
            chosen = settled_on(base, adapter, chosen)
        return _train(base, adapter.name, chosen, observer, notes, lock)


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


def _train(
    base: Base, name: str, recipe: Recipe, observer: RunObserver, notes: Notes, lock: storage.Lock
) -> RunResult:
    """Prepare the rows, attach the adapter if it is new, train it, and write the results.

    notes: grows while the run is going on.  lock: of the run's folder.
    """
    with _guests(base, name):
        with stopped(*NOTHING_LOST):
            work = _prepared(base, name, recipe)
            facts = identity(work.given, base, work.prepared) | dict(work.stage.depends(base))
            _write(work, facts)
            trained_before = has_finished(work.folder)
            if not trained_before:
                notes.keep_in(work.folder / "notes.json")
                note_start(work.folder, trained_on(base, name, work.recipe))
            _announce(observer, work)
            task = _task(work, facts, observer)
            trainer = Trainer(base, name, task, recipe.train, work.folder, observer, lock)
        trainer.run()
        with stopped(*TRAINED):
            if trained_before:  # no step was taken now: the trained adapter is in the folder
                notice(f"nothing is left to train: the run in {work.folder} has ended")
                _, tensors, _ = peft.read(work.folder / "adapter")
                base.adapters[name].load_file_state(tensors)
            else:
                note_end(work.folder)
            return replace(_finish(work, observer), notes=notes, trained=not trained_before)


@contextlib.contextmanager
def _guests(base: Base, name: str) -> Iterator[None]:
    """Detach after the block what a stage attached beside the adapter of this name."""
    before = {name, *base.adapters}
    try:
        yield
    finally:
        for other in base.adapters.keys() - before:
            base.detach(other)


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


def _task(work: _Work, identity: Mapping[str, Any], observer: RunObserver) -> Task:
    """Return what the training loop needs: batches, loss, evaluation and samples.  identity: of the run."""
    base = work.base
    recipe = work.recipe
    prepared = work.prepared
    prompts = recipe.train.samples
    feeds: Mapping[str, Feed] = {
        "train": feed(base, recipe, prepared.train, recipe.train.batch_size, recipe.train.micro_batch_size),
        "eval": scoring_feed(base, recipe, prepared.eval or []),
    }
    feeds = work.stage.before_training(base, work.start, feeds, work.folder, identity)
    rows: Feed | Rollouts = feeds["train"]
    if isinstance(work.stage, Online):
        rows = Rollouts(base, work.adapter, work.stage, feeds["train"], work.folder, identity, observer.wrote)

    def evaluate(step: int) -> dict[str, float]:
        with base.using(work.adapter):
            scores = losses(base, feeds["eval"], work.stage)
        if doubt := work.stage.warning(evaluations(work.folder), scores):
            notice(f"step {step}: {doubt}")
        return scores

    def sample() -> list[str]:
        answers = work.opened.ask(prompts, max_new_tokens=recipe.train.sample_tokens)
        return [f"{prompt}\n\n{answer}" for prompt, answer in zip(prompts, answers, strict=True)]

    return Task(
        feed=rows,
        objective=work.stage.loss,
        evaluate=evaluate if prepared.eval else None,
        sample=sample if prompts else None,
        identity=identity,
        before_step=work.stage.before_step,
        progress=work.stage.progress,
        beside=work.stage.beside(base, work.adapter),
        noise=not work.stage.online,
    )


def _announce(observer: RunObserver, work: _Work) -> None:
    """Tell the observer what will be trained, and on which rows."""
    base, recipe = work.base, work.recipe
    adapter = base.adapters[work.adapter]
    observer.begin(trained_on(base, work.adapter, recipe))
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
    if asked != {key: recorded_scores(folder).get(key) for key in asked}:
        if chosen.rows:
            observer.scoring()
        table = score_rows(work.opened, recipe, chosen)
        facts = {"columns": table.columns, "texts": table.texts[:SHOWN], "coverage": table.coverage.json()}
        facts |= {"curves": table.curves} if table.curves else {}
        storage.write_record(folder / SCORES, facts | asked)  # keeps the order of the columns
    if recipe.fresh and not (folder / "model").exists():
        export(base, folder / "model", to="hf", adapter=work.adapter)
    storage.replace(folder / "report.html", report(folder).encode())
    return result_of(folder, recipe)


def _add_tokenizer(adapter: Path, tokenizer: Any) -> None:
    """Commit the adapter's folder again, with the tokenizer and the chat template in it."""
    storage.validate(adapter)  # nothing is signed again that was changed
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
