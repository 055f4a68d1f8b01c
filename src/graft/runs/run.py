"""A recipe carried out: base, adapter, data, training, scores, report; the same call goes on where it stopped.

What a run leaves behind is in its folder: recipe.yaml (repeats the run), metrics.jsonl, checkpoints/, adapter/ with
tokenizer and template, samples.md, data_report.json, evaluation.json, report.html, and model/ for a model that started
from random weights.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from graft import seedling, storage
from graft.base.base import Base
from graft.data import DataReport, Prepared, prepare
from graft.errors import UsageError
from graft.evaluate import perplexity
from graft.objectives import BY_STAGE
from graft.recipe import Recipe, read
from graft.runs.build import asks_by_template, feed, load_base, methods_of
from graft.runs.open import Opened
from graft.runs.page import report
from graft.runs.score import score
from graft.shipping.export import export
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

    def note(self, what: str, text: str) -> None:
        """One fact in two columns: base, adapter, note, eval."""

    def data(self, report: DataReport) -> None:
        """The data report, before the first step."""


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
    name = _attach(base, chosen)
    return _train(base, name, chosen, observer)


def train(
    base: Base, adapter: Any, data: str | Path | Sequence[str | Path] | Mapping[str, Any], **keys: Any
) -> RunResult:
    """Train an attached adapter on rows: the same run as a recipe's, with a base that is loaded already.

    data: a path, several, or the keys of a recipe's `data:`.  keys: those of `train:` (epochs=2, lr=1e-4, ...), and
    output=, stage=, objective=, evaluate=, observer=.
    """
    observer = keys.pop("observer", None) or RunObserver()
    top = {key: keys.pop(key) for key in ("output", "stage", "objective", "evaluate") if key in keys}
    if not isinstance(data, Mapping):
        data = {"train": [str(path) for path in data] if isinstance(data, list | tuple) else str(data)}
    methods = [{"name": _method_name(method), **method.config()} for method in adapter.methods]
    settings = {"model": base.name or "given", "method": methods if len(methods) > 1 else methods[0]}
    chosen = read({**settings, "data": dict(data), "train": keys, "output": f"runs/{adapter.name}", **top})
    _same_settings(Path(chosen.output), chosen)
    return _train(base, adapter.name, chosen, observer)


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


def _attach(base: Base, recipe: Recipe) -> str:
    """A new adapter, or the saved one that the recipe goes on from. Returns its name."""
    name = Path(recipe.output).resolve().name
    torch.manual_seed(recipe.train.seed)  # before the adapter is born: same recipe, same adapter
    if recipe.adapter is not None:
        base.load_adapter(recipe.adapter, name)
    elif recipe.stage != "classify":
        base.attach(name, methods_of(recipe))
    return name  # a classifier is attached when the rows have told its classes


def _train(base: Base, name: str, recipe: Recipe, observer: RunObserver) -> RunResult:
    """Rows, adapter of a classifier, training, and what is left behind."""
    folder, settings, seed = Path(recipe.output), seedling.located(recipe.data), recipe.train.seed
    _suited(base, recipe)
    prepared = prepare(
        settings,
        base.tokenizer,
        stage=recipe.stage,
        objective=recipe.objective,
        family=base.family,
        seed=seed,
    )
    if prepared.template is not None:
        base.tokenizer.chat_template = prepared.template
    if name not in base.adapters:
        torch.manual_seed(seed)
        base.attach(name, methods_of(recipe, prepared.labels or (), tagged=bool(prepared.train.tags)))
    _fit_head(base.adapters[name], prepared)
    asks = asks_by_template(settings, recipe.stage)
    opened = Opened(base, name, recipe, folder, asks)
    _write(folder, recipe, prepared, asks)
    _tell(observer, opened, prepared)
    task, again = _task(opened, prepared), (folder / "finished.json").exists()
    Trainer(base, name, task, recipe.train, folder, observer).run()
    if again:  # nothing was trained now: the adapter is what the folder holds
        base.adapters[name].load_file_state(load_file(folder / "adapter" / "adapter_model.safetensors"))
    return _finish(opened, observer)


def _write(folder: Path, recipe: Recipe, prepared: Prepared, asks: bool) -> None:
    """What is known before the first step."""
    folder.mkdir(parents=True, exist_ok=True)
    storage.replace(folder / "recipe.yaml", recipe.yaml().encode())
    storage.replace(
        folder / "data_report.json", storage.encode(prepared.report.json() | {"asks_by_template": asks})
    )
    if prepared.report.rejects:
        prepared.report.write_rejects(folder / "rejected.jsonl")


def _task(opened: Opened, prepared: Prepared) -> Task:
    """The batches, evaluation and samples of training, and the identity under which the run goes on."""
    base, recipe, name = opened.base, opened.recipe, opened.adapter
    size, prompts = recipe.evaluate.batch_size, recipe.train.samples
    batches = feed(base, recipe, prepared.train, recipe.train.batch_size, recipe.train.micro_batch_size)
    held = feed(base, recipe, prepared.eval, size, size) if prepared.eval else None

    def evaluate(step: int) -> dict[str, float]:
        with base.using(name):
            found = perplexity(base, held)
        if recipe.stage == "classify":
            return {"loss": found["loss"], "accuracy": found["token_accuracy"]}
        return found

    def sample() -> list[str]:
        answers = opened.ask(prompts, max_new_tokens=recipe.train.sample_tokens)
        return [f"{prompt}\n\n{answer}" for prompt, answer in zip(prompts, answers, strict=True)]

    rows = hashlib.sha256(prepared.train.ids).hexdigest()
    identity = _identity(recipe) | {
        "fingerprint of the base": base.fingerprint(),
        "fingerprint of the rows": rows,
    }
    return Task(
        batches, BY_STAGE[recipe.stage], evaluate if held else None, sample if prompts else None, identity
    )


def _method_name(method: Any) -> str:
    return type(method).__module__.rpartition(".")[2]


def _fit_head(adapter: Any, prepared: Prepared) -> None:
    """Give a head without names those of the rows' classes.

    Refuses one that has other classes, or pools where every word has a class.
    """
    head, labels, tagged = adapter.head, prepared.labels, bool(prepared.train.tags)
    if head is None or labels is None:
        return
    if (head.labels and list(head.labels) != labels) or head.num_labels != len(labels):
        known = ", ".join(head.labels) or f"{head.num_labels} without names"
        raise UsageError(
            f"the adapter knows the classes {known}; the rows have {', '.join(labels)}",
            "the same classes in both",
            "train a new adapter on these rows, or give rows of the adapter's classes",
        )
    if head.every_token != tagged:
        raise UsageError(
            f"{head.name()} for rows with one {'tag per word' if tagged else 'label per text'}",
            "a task head with pool='none' for tagged words, another pool for texts",
            "leave pool out of the recipe, or attach TaskHead(pool='none')"
            if tagged
            else "choose another pool",
        )
    named = replace(head, labels=tuple(labels))
    adapter.methods = tuple(named if method is head else method for method in adapter.methods)


def _suited(base: Base, recipe: Recipe) -> None:
    """Refuse an objective that this model cannot learn by."""
    fits = {"causal": ("causal",), "masked": ("masked",), "span": ("seq2seq",)}[recipe.objective]
    fits = ("causal", "seq2seq") if recipe.stage == "sft" else fits
    if recipe.stage != "classify" and base.family not in fits:
        raise UsageError(
            f"stage {recipe.stage} with objective {recipe.objective} on {base.name}, a {base.family} model",
            f"a {' or '.join(fits)} model",
            "set objective: masked for an encoder, span for an encoder-decoder, or take another model",
        )


def _tell(observer: RunObserver, opened: Opened, prepared: Prepared) -> None:
    """What will happen, before the first step."""
    base, recipe, adapter = opened.base, opened.recipe, opened.base.adapters[opened.adapter]
    whole, trained = base.count(), adapter.count()
    stored = recipe.dtype if recipe.quant == "none" else recipe.quant
    observer.note("base", f"{base.name}   {whole:,} parameters   {stored}")
    names, places = " + ".join(map(_method_name, adapter.methods)), len(adapter.inserts)
    observer.note(
        "adapter", f"{names} on {places} sites   {trained:,} trained ({100 * trained / whole:.2g} %)"
    )
    for text in adapter.notices():
        observer.note("note", text)
    why = base.unpackable(recipe.data.max_length)
    if recipe.data.pack and why and recipe.stage != "classify":
        observer.note("note", f"rows are padded, not packed: {why}")
    observer.data(prepared.report)


def _finish(opened: Opened, observer: RunObserver) -> RunResult:
    """Tokenizer, scores, model folder and report of a run whose training is over. Repeating it changes nothing."""
    base, folder, recipe = opened.base, opened.folder, opened.recipe
    if not (folder / "adapter" / "tokenizer_config.json").exists():
        _add_tokenizer(folder / "adapter", base.tokenizer)
    if not (folder / "evaluation.json").exists():
        observer.note("eval", "scoring before and after on the rows held out")
        table = score(opened, recipe)
        kept = {
            "columns": table.columns,
            "texts": table.texts[:SHOWN],
        }  # not sorted: the columns have an order
        storage.replace(folder / "evaluation.json", json.dumps(kept, indent=1, ensure_ascii=False).encode())
    if recipe.fresh and not (folder / "model").exists():
        export(base, folder / "model", to="hf", adapter=opened.adapter)
    storage.replace(folder / "report.html", report(folder).encode())
    return _result(folder, recipe)


def _result(folder: Path, recipe: Recipe) -> RunResult:
    """What a finished run's folder says."""
    done, scores = (
        storage.decode(folder / "finished.json"),
        storage.decode(folder / "evaluation.json")["columns"],
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
