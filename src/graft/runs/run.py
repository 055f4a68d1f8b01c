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
from graft.base.choice import named
from graft.core.by_name import answered, require_base
from graft.data import Prepared, prepare
from graft.data.feed import Feed
from graft.data.in_memory import splits
from graft.data.rows_given import RowsGiven, taken_out
from graft.errors import UsageError, notice
from graft.evaluate import losses
from graft.evaluate.coverage import fingerprint
from graft.evaluate.usable import WRITING, check_metrics, obstacle
from graft.formats import peft
from graft.models.dtype import AUTO, FORMATS
from graft.models.load import DTYPES
from graft.planning.fit import fitting, of_adapter, positions_taken, require_tokenizer
from graft.recipe import Recipe, Train, read
from graft.recipe.keywords import with_keywords
from graft.runs.audience import Audience, attended
from graft.runs.build import feed, grown, load_base, scoring_feed, settled, settled_on
from graft.runs.circumstances import note_end, note_start, trained_on
from graft.runs.effect import without_effect
from graft.runs.hear import Notes
from graft.runs.identity import as_begun, claim, identity, require_same_settings
from graft.runs.open import Opened
from graft.runs.own_objective import Function, checked, facts_of, function_of, name_of, try_out
from graft.runs.report.page import report
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
    observer: Any = None,
) -> RunResult:
    """Carry out a recipe, from the beginning or from the newest checkpoint in its output folder.

    recipe: a file, a run's folder or a dict of settings, whose data may be rows in memory: the run's folder
    keeps them.  overrides: "key=value" changes of the recipe.
    observer: one or several (`graft.Observer`).
    Raises UsageError for a recipe with wrong settings, DataError for rows that cannot be used,
    CheckpointError for a folder that is in use or belongs to another run, TrainingError for a step that
    failed, MachineError for errors of the system (SpaceError if the disk is full).
    """
    understood: list[str] = []
    overrides = list(overrides)
    plain, given = taken_out(recipe, overrides)
    chosen = read(plain, overrides, understood)
    return carry_out(chosen, observer, understood=understood, given=given)


@storage.named_errors("while training")
def carry_out(
    chosen: Recipe,
    observer: Any = None,
    *,
    understood: Sequence[str] = (),
    given: RowsGiven | None = None,
    load: Callable[[Recipe], Base] = load_base,
    lock: storage.Lock | None = None,
) -> RunResult:
    """Carry out a recipe that has been read; see `run`.

    understood: what to note of its reading.  given: rows in memory that it names.  load: returns its base.
    lock: of the run's folder, where the caller holds it.
    """
    folder = Path(chosen.output)
    storage.require_run_folder(folder)
    # One lock from the first look at the folder until the report is written: no other process comes between,
    # and a second one learns at once that the folder is in use.
    with contextlib.ExitStack() as stack:
        stack.enter_context(obeyed())
        lock = stack.enter_context(storage.locked(folder, lock))
        audience = stack.enter_context(attended(observer, chosen))
        notes = stack.enter_context(audience.heard())
        with stopped(*NOTHING_LOST):
            chosen = as_begun(chosen)
            stage_of(chosen).check_complete()
            require_same_settings(folder, chosen)
            own = function_of(chosen)
            if given is not None:
                given.keep()
            for text in understood:
                notice(text)
            audience.busy("planning")
            chosen = settled(chosen)
            audience.busy(f"loading {chosen.model if isinstance(chosen.model, str) else 'a new model'}")
            base = load(chosen)
            name = folder.resolve().name
            if chosen.adapter is not None:
                adapter = base.load_adapter(chosen.adapter, name)
                chosen = of_adapter(chosen, adapter.methods, base.sites)
        return _train(base, name, chosen, audience, notes, lock, own)


@with_keywords("train", Train)
@answered
@storage.named_errors("while training")
def train(
    base: Base,
    adapter: Adapter | str,
    data: Any,
    *,
    output: str | Path | None = None,
    stage: str | Mapping[str, Any] = "sft",
    objective: str | Callable[[Any, Any], Any] | None = None,
    evaluate: Mapping[str, Any] | None = None,
    observer: Any = None,
    progress: bool = True,
    **train: Any,
) -> RunResult:
    """Train an attached adapter on rows: the same run as a recipe's, with a base that is already loaded.

    adapter: it, or its name.
    data: a path, several paths, or rows: dicts or texts in a list, a generator, a data set of `datasets`, a
    table of pandas, polars or pyarrow; or the keys of a recipe's `data:`, whose train, eval and test may be
    rows. The run's folder keeps rows in memory.
    output: the run's folder, by default runs/ and the adapter's name.
    stage, evaluate: as in a recipe.
    objective: as in a recipe, or a function of your own (see `runs.own_objective`).
    observer: one or several (`graft.Observer`) that hear of it.  progress: show a bar.
    The other keywords are the keys of a recipe's `train:`.  Raises as `run` does.
    """
    require_base("graft.train", base)
    adapter = base.adapters[named(adapter, base.adapters)]
    path = name_of(objective) if callable(objective) else objective
    methods = [{"name": method.name(), **method.config()} for method in adapter.methods]
    settings: dict[str, Any] = {
        "model": base.name or "given",
        "dtype": next((word for word in FORMATS if DTYPES[word] == base.dtype), AUTO),
        "method": methods if len(methods) > 1 else methods[0],
        "stage": stage if isinstance(stage, str) else dict(stage),
        **({} if path is None else {"objective": path}),
        "data": dict(splits(data)),
        "train": train,
        "output": str(output or f"runs/{adapter.name}"),
    }
    settings, given = taken_out(settings | ({"evaluate": dict(evaluate)} if evaluate is not None else {}))
    chosen = read(settings)
    stage_of(chosen).check_complete()
    storage.require_run_folder(Path(chosen.output))
    folder = Path(chosen.output)
    with contextlib.ExitStack() as stack:
        stack.enter_context(obeyed())
        lock = stack.enter_context(storage.locked(folder))
        audience = stack.enter_context(attended(observer, chosen, progress=progress))
        notes = stack.enter_context(audience.heard())
        with stopped(*NOTHING_LOST):
            require_same_settings(folder, chosen)
            own = objective if callable(objective) else function_of(chosen)
            given.keep()
            audience.busy("planning")
            chosen = settled_on(base, adapter, chosen)
        return _train(base, adapter.name, chosen, audience, notes, lock, own)


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
    base: Base,
    name: str,
    recipe: Recipe,
    observer: Audience,
    notes: Notes,
    lock: storage.Lock,
    own: Function | None = None,
) -> RunResult:
    """Prepare the rows, attach the adapter if it is new, train it, and write the results.

    notes: grows while the run is going on.  lock: of the run's folder.  own: what is minimised in
    the place of the stage's loss.
    """
    with _guests(base, name):
        with stopped(*NOTHING_LOST):
            work = _prepared(base, name, recipe, observer)
            facts = identity(work.given, base, work.prepared) | dict(work.stage.depends(base))
            facts |= facts_of(recipe, own)
            _write(work, facts)
            trained_before = has_finished(work.folder)
            if not trained_before:
                notes.keep_in(work.folder / "notes.json")
                note_start(work.folder, trained_on(base, name, work.recipe))
            _announce(observer, work)
            task = _task(work, facts, observer)
            if own is not None and not trained_before:
                task = replace(task, objective=checked(recipe.objective, own))
                try_out(base, name, task.objective, task.feed)
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


def _prepared(base: Base, name: str, recipe: Recipe, observer: Audience) -> _Work:
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
    prepared = prepare(
        settings, base.tokenizer, stage, family=base.family, vocabulary=size, told=observer.busy
    )
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


def _task(work: _Work, identity: Mapping[str, Any], observer: Audience) -> Task:
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
            scores = losses(base, feeds["eval"], work.stage, observer.busy)
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


def _announce(observer: Audience, work: _Work) -> None:
    """Tell the observer what will be trained, and on which rows."""
    base, recipe = work.base, work.recipe
    adapter = base.adapters[work.adapter]
    what = {"stage": recipe.stage_name, "recipe": recipe.model_dump(), "folder": str(work.folder)}
    observer.begin({**trained_on(base, work.adapter, recipe), **what})
    for text in adapter.notices():
        notice(text)
    if recipe.data.pack and work.stage.packs and (obstacle := base.unpackable(recipe.data.max_length)):
        notice(f"rows are padded, not packed: {obstacle}")
    for text in without_effect(recipe, work.stage, base, adapter, work.prepared):
        notice(text)
    observer.data(work.prepared.report)


def _finish(work: _Work, observer: Audience) -> RunResult:
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
        table = score_rows(work.opened, recipe, chosen, observer.busy)
        facts = {"columns": table.columns, "texts": table.texts[:SHOWN], "coverage": table.coverage.json()}
        facts |= {"curves": table.curves} if table.curves else {}
        storage.write_record(folder / SCORES, facts | asked)  # keeps the order of the columns
        if table.columns:
            observer.scored(table.columns)
    observer.busy("writing the report")
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
