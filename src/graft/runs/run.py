"""A recipe carried out: base, adapter, data, training, scores, report; the same call goes on where it stopped.

What a run leaves behind is in its folder: recipe.yaml (repeats the run), metrics.jsonl, checkpoints/, adapter/ with
tokenizer and template, samples.md, data_report.json, evaluation.json, report.html, and model/ for a model that started
from random weights.
"""

import hashlib
import json
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

# Settings that may differ between two starts of one run: they change speed, memory or what is written, never the steps.
FREE = (
    *(
        "output",
        "evaluate",
        "data.test",
        "train.micro_batch_size",
        "train.gradient_checkpointing",
        "train.compile",
    ),
    *(
        "train.paged_budget_mb",
        "train.save_every",
        "train.keep",
        "train.log_every",
        "train.samples",
        "train.sample_tokens",
    ),
)
SHOWN = 20  # written texts that evaluation.json keeps


class RunObserver(Observer):
    """An observer of training that also hears what a run says before and after it."""

    def begin(self, facts: dict[str, Any]) -> None:
        """Hear what will be trained: base, parameters, stored; methods, sites, trained."""

    def note(self, text: str) -> None:
        """Hear something that deserves a look."""

    def data(self, report: DataReport) -> None:
        """Hear the data report, before the first step."""

    def scoring(self) -> None:
        """Hear that the held-out rows are scored now, before and after."""


@dataclass(frozen=True)
class RunResult:
    """What a finished run left.  scores: {"before", "after": {metric: value}}; model: folder of a whole new model."""

    folder: Path
    adapter: Path
    steps: int
    loss: float | None
    tokens: int
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    model: Path | None = None

    def facts(self) -> dict[str, Any]:
        """Everything as JSON values."""
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
    """Carry out a recipe, from the beginning or from where its output folder stands.

    observer: hears what happens.  Raises UsageError for a recipe that cannot be meant, DataError for rows that cannot
    be used, CheckpointError for a folder of another run, TrainingError for steps that must not count.
    """
    chosen, observer = read(recipe, overrides), observer or RunObserver()
    folder = Path(chosen.output)
    with locked(folder):  # before anything is loaded: who comes second shall know at once
        _same_settings(folder, chosen)
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
    """Train an attached adapter on rows: the same run as a recipe's, with a base that is loaded already.

    data: a path, several, or the keys of a recipe's `data:`.  output: the run's folder, runs/NAME of the adapter where
    left out.  stage, objective, evaluate: as in a recipe.  observer: hears what happens.  train: keys of a recipe's
    `train:` (epochs=2, lr=1e-4, ...). Raises as `run` does.
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
    _same_settings(Path(chosen.output), chosen)
    return _train(base, adapter.name, chosen, observer or RunObserver())


def _same_settings(folder: Path, chosen: Recipe) -> None:
    """Refuse a folder that holds a run with other settings, before anything is loaded."""
    if (folder / "recipe.yaml").exists():
        same_run(folder, _identity(read(folder)), _identity(chosen))


def _identity(recipe: Recipe) -> dict[str, Any]:
    """The settings under which alone a run may be resumed, by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in recipe.model_dump().items():
        flat |= {f"{key}.{k}": v for k, v in value.items()} if key in ("data", "train") else {key: value}
    return {key: value for key, value in flat.items() if key not in FREE}


@dataclass(frozen=True)
class _Work:
    """A run between its recipe and its result.  adapter: its name.  prepared: the rows.  opened: to ask and score."""

    base: Base
    adapter: str
    recipe: Recipe
    stage: Stage
    prepared: Prepared
    folder: Path
    opened: Opened


def _train(base: Base, name: str, recipe: Recipe, observer: RunObserver) -> RunResult:
    """Prepare the rows, attach the adapter if it is new, train it, and write what is left behind."""
    work = _prepared(base, name, recipe)
    _write(work)
    _announce(observer, work)
    again = (work.folder / "finished.json").exists()
    Trainer(base, name, _task(work), recipe.train, work.folder, observer).run()
    if again:  # nothing was trained now: the adapter is what the folder holds
        tensors = load_file(work.folder / "adapter" / "adapter_model.safetensors")
        base.adapters[name].load_file_state(tensors)
    return _finish(work, observer)


def _prepared(base: Base, name: str, recipe: Recipe) -> _Work:
    stage, settings, seed = stage_of(recipe), seedling.located(recipe.data), recipe.train.seed
    stage.check_base(base)
    prepared = prepare(settings, base.tokenizer, stage, family=base.family, seed=seed)
    if prepared.template is not None:
        base.tokenizer.chat_template = prepared.template
    if name not in base.adapters:
        torch.manual_seed(seed)  # before the adapter is born: same recipe, same adapter
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
    """Return the batches, evaluation and samples of training, and the identity under which the run goes on."""
    base, recipe, prepared = work.base, work.recipe, work.prepared
    size, prompts = recipe.evaluate.batch_size, recipe.train.samples
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
        batches,
        work.stage.loss,
        evaluate if prepared.eval else None,
        sample if prompts else None,
        identity,
    )


def _announce(observer: RunObserver, work: _Work) -> None:
    """Tell what will happen, before the first step."""
    base, recipe, adapter = work.base, work.recipe, work.base.adapters[work.adapter]
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
    why = base.unpackable(recipe.data.max_length)
    if recipe.data.pack and why and work.stage.packs:
        observer.note(f"rows are padded, not packed: {why}")
    observer.data(work.prepared.report)


def _finish(work: _Work, observer: RunObserver) -> RunResult:
    """Write tokenizer, scores, model folder and report of a run that is trained. Repeating it changes nothing."""
    base, folder, recipe = work.base, work.folder, work.recipe
    if not (folder / "adapter" / "tokenizer_config.json").exists():
        _add_tokenizer(folder / "adapter", base.tokenizer)
    if not (folder / "evaluation.json").exists():
        observer.scoring()
        table = score(work.opened, recipe)
        kept = {
            "columns": table.columns,
            "texts": table.texts[:SHOWN],
        }  # not sorted: the columns have an order
        storage.replace(folder / "evaluation.json", json.dumps(kept, indent=1, ensure_ascii=False).encode())
    if recipe.fresh and not (folder / "model").exists():
        export(base, folder / "model", to="hf", adapter=work.adapter)
    storage.replace(folder / "report.html", report(folder).encode())
    return _result(folder, recipe)


def _result(folder: Path, recipe: Recipe) -> RunResult:
    """What a finished run's folder says."""
    done, scores = (
        storage.read_json(folder / "finished.json"),
        storage.read_json(folder / "evaluation.json")["columns"],
    )
    model = folder / "model" if recipe.fresh else None
    return RunResult(folder, folder / "adapter", done["steps"], done["loss"], done["tokens"], scores, model)


def _add_tokenizer(adapter: Path, tokenizer: Any) -> None:
    """Commit the adapter's folder once more, with tokenizer and chat template beside the two files."""
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
