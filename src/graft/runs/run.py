"""Carry out a recipe: base, adapter, data, training, scores, report; the same call continues a stopped run.

A run's folder receives recipe.yaml (which repeats the run), data_report.json, metrics.jsonl, checkpoints/,
samples.md, adapter/ with tokenizer and template, evaluation.json and report.html; and model/, if the weights
were random at first.

From `graft train` to the equation: cli/train.py calls `run` here, which hands its work to training/loop.py;
there training/step.py computes the mean loss of a step from the stage's loss, for most stages that of
objectives/lm.py.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from graft import seedling, storage
from graft.base.adapter import Adapter
from graft.base.base import Base
from graft.data import DataReport, Prepared, prepare
from graft.evaluate import losses
from graft.recipe import Recipe, read
from graft.runs.build import feed, load_base
from graft.runs.open import Opened
from graft.runs.page import report
from graft.runs.score import score
from graft.shipping.export import export
from graft.stages.stage import Stage, methods_of, stage_of
from graft.training import Observer, Task, Trainer
from graft.training.checkpoint import same_run
from graft.training.lock import locked

# Settings that may differ between two starts of a run: they change speed, memory or what is written, not the
# steps.
FREE = (
    "output",
    "evaluate",
    "data.test",
    "train.micro_batch_size",
    "train.gradient_checkpointing",
    "train.compile",
    "train.paged_budget_mb",
    "train.save_every",
    "train.keep",
    "train.log_every",
    "train.samples",
    "train.sample_tokens",
)
SHOWN = 20  # generated texts that evaluation.json keeps


class RunObserver(Observer):
    """An observer of training that also receives what happens before and after it."""

    def begin(self, facts: dict[str, Any]) -> None:
        """Receive what will be trained: base, parameters, stored; methods, sites, trained."""

    def note(self, text: str) -> None:
        """Receive something worth knowing before training."""

    def data(self, report: DataReport) -> None:
        """Receive the data report, before the first step."""

    def scoring(self) -> None:
        """Receive the start of scoring: the held-out rows, before and after training."""


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    folder, adapter: its folder and the adapter's.  loss: of the last step.
    tokens: supervised ones, of all steps.
    scores: {"before": {metric: value}, "after": ...}.
    model: the folder of a model that started from random weights.
    """

    folder: Path
    adapter: Path
    steps: int
    loss: float | None
    tokens: int
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    model: Path | None = None

    def facts(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        paths = {
            "folder": str(self.folder),
            "adapter": str(self.adapter),
            "model": str(self.model) if self.model else None,
        }
        return {**paths, "steps": self.steps, "loss": self.loss, "tokens": self.tokens, "scores": self.scores}


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
    chosen = read(recipe, overrides)
    observer = observer or RunObserver()
    folder = Path(chosen.output)
    with locked(
        folder
    ):  # before anything is loaded: a second process must learn at once that the folder is in use
        _require_same_settings(folder, chosen)
    if (folder / "report.html").exists() and (folder / "adapter").exists():
        return _result(folder, chosen)  # nothing is left to do
    base = load_base(chosen)
    name = folder.resolve().name
    if chosen.adapter is not None:
        base.load_adapter(chosen.adapter, name)
    return _train(base, name, chosen, observer)


def train(
    base: Base,
    adapter: Adapter,
    data: str | Path | Sequence[str | Path] | Mapping[str, Any],
    *,
    output: str | Path | None = None,
    stage: str = "sft",
    objective: str = "causal",
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
        data = {"train": [str(path) for path in data] if isinstance(data, list | tuple) else str(data)}
    methods = [{"name": method.name(), **method.config()} for method in adapter.methods]
    settings: dict[str, Any] = {
        "model": base.name or "given",
        "method": methods if len(methods) > 1 else methods[0],
        "stage": stage,
        "objective": objective,
        "data": dict(data),
        "train": train,
        "output": str(output or f"runs/{adapter.name}"),
    }
    chosen = read(settings | ({"evaluate": dict(evaluate)} if evaluate is not None else {}))
    _require_same_settings(Path(chosen.output), chosen)
    return _train(base, adapter.name, chosen, observer or RunObserver())


def _require_same_settings(folder: Path, chosen: Recipe) -> None:
    """Raise CheckpointError if the folder holds a run with different settings."""
    if (folder / "recipe.yaml").exists():
        same_run(folder, _identity(read(folder)), _identity(chosen))


def _identity(recipe: Recipe) -> dict[str, Any]:
    """Return the settings that must be equal when a run is resumed, by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in recipe.model_dump().items():
        flat |= {f"{key}.{k}": v for k, v in value.items()} if key in ("data", "train") else {key: value}
    return {key: value for key, value in flat.items() if key not in FREE}


@dataclass(frozen=True)
class _Work:
    """Everything that a run works with.

    adapter: its name.  prepared: the encoded rows.  opened: base and adapter, to ask and to score.
    """

    base: Base
    adapter: str
    recipe: Recipe
    stage: Stage
    prepared: Prepared
    folder: Path
    opened: Opened


def _train(base: Base, name: str, recipe: Recipe, observer: RunObserver) -> RunResult:
    """Prepare the rows, attach the adapter if it is new, train it, and write the results."""
    work = _prepared(base, name, recipe)
    _write(work)
    _announce(observer, work)
    trained_before = (work.folder / "finished.json").exists()
    Trainer(base, name, _task(work), recipe.train, work.folder, observer).run()
    if trained_before:  # no step was taken now: the trained adapter is in the folder
        tensors = load_file(work.folder / "adapter" / "adapter_model.safetensors")
        base.adapters[name].load_file_state(tensors)
    return _finish(work, observer)


def _prepared(base: Base, name: str, recipe: Recipe) -> _Work:
    """Encode the rows, and attach the adapter if it is new."""
    stage = stage_of(recipe)
    settings = seedling.located(recipe.data)
    seed = recipe.train.seed
    stage.check_base(base)
    prepared = prepare(settings, base.tokenizer, stage, family=base.family, seed=seed)
    if prepared.template is not None:
        base.tokenizer.chat_template = prepared.template
    if name not in base.adapters:
        torch.manual_seed(seed)  # the new adapter's values follow from the seed
        base.attach(name, methods_of(recipe, prepared.labels, tagged=prepared.tagged))
    stage.fit(base.adapters[name], prepared.labels, tagged=prepared.tagged)
    folder = Path(recipe.output)
    opened = Opened(base, name, recipe, folder, stage.asks_by_template(settings))
    return _Work(base, name, recipe, stage, prepared, folder, opened)


def _write(work: _Work) -> None:
    """Write what is known before the first step."""
    folder, report = work.folder, work.prepared.report
    folder.mkdir(parents=True, exist_ok=True)
    storage.replace(folder / "recipe.yaml", work.recipe.yaml().encode())
    facts = report.json() | {"asks_by_template": work.opened.by_template}
    storage.replace(folder / "data_report.json", storage.encode(facts))
    if report.rejects:
        report.write_rejects(folder / "rejected.jsonl")


def _task(work: _Work) -> Task:
    """Return what the training loop needs: batches, loss, evaluation, samples, and the run's identity."""
    base = work.base
    recipe = work.recipe
    prepared = work.prepared
    size = recipe.evaluate.batch_size
    prompts = recipe.train.samples
    batches = feed(base, recipe, prepared.train, recipe.train.batch_size, recipe.train.micro_batch_size)
    held = feed(base, recipe, prepared.eval or [], size, size)

    def evaluate(step: int) -> dict[str, float]:
        with base.using(work.adapter):
            return losses(base, held, work.stage)

    def sample() -> list[str]:
        answers = work.opened.ask(prompts, max_new_tokens=recipe.train.sample_tokens)
        return [f"{prompt}\n\n{answer}" for prompt, answer in zip(prompts, answers, strict=True)]

    identity = _identity(recipe) | {
        "fingerprint of the base": base.fingerprint(),
        "fingerprint of the rows": hashlib.sha256(prepared.train.ids.values).hexdigest(),
    }
    return Task(
        feed=batches,
        objective=work.stage.loss,
        evaluate=evaluate if prepared.eval else None,
        sample=sample if prompts else None,
        identity=identity,
    )


def _announce(observer: RunObserver, work: _Work) -> None:
    """Tell the observer what will be trained, and on which rows."""
    base, recipe = work.base, work.recipe
    adapter = base.adapters[work.adapter]
    observer.begin(
        {
            "base": base.name,
            "parameters": base.count(),
            "stored": recipe.dtype if recipe.quant == "none" else recipe.quant,
            "methods": [method.name() for method in adapter.methods],
            "sites": len(adapter.inserts),
            "trained": adapter.count(),
        }
    )
    for text in adapter.notices():
        observer.note(text)
    if recipe.data.pack and work.stage.packs and (obstacle := base.unpackable(recipe.data.max_length)):
        observer.note(f"rows are padded, not packed: {obstacle}")
    observer.data(work.prepared.report)


def _finish(work: _Work, observer: RunObserver) -> RunResult:
    """Write what is missing of tokenizer, scores, model folder and report; return the result."""
    base = work.base
    folder = work.folder
    recipe = work.recipe
    if not (folder / "adapter" / "tokenizer_config.json").exists():
        _add_tokenizer(folder / "adapter", base.tokenizer)
    if not (folder / "evaluation.json").exists():
        observer.scoring()
        table = score(work.opened, recipe)
        facts = {"columns": table.columns, "texts": table.texts[:SHOWN]}
        storage.write_json(folder / "evaluation.json", facts)  # keeps the order of the columns
    if recipe.fresh and not (folder / "model").exists():
        export(base, folder / "model", to="hf", adapter=work.adapter)
    storage.replace(folder / "report.html", report(folder).encode())
    return _result(folder, recipe)


def _result(folder: Path, recipe: Recipe) -> RunResult:
    """Return the result that a finished run's folder records."""
    finished = storage.read_json(folder / "finished.json")
    return RunResult(
        folder=folder,
        adapter=folder / "adapter",
        steps=finished["steps"],
        loss=finished["loss"],
        tokens=finished["tokens"],
        scores=storage.read_json(folder / "evaluation.json")["columns"],
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
