"""Graft's side of a cell: the recipe carried out by `graft.run`, its adapter opened again from the run's folder."""

import json
from pathlib import Path
from typing import Any, Protocol

import tasks
import torch

import graft
from graft.data.encode import Encoder
from graft.data.feed import Feed
from graft.data.rows import Row
from graft.evaluate.metrics import accuracy, bleu, macro_f1, rouge_l
from graft.evaluate.perplexity import classes, perplexity
from graft.recipe import Recipe
from graft.runs.build import feed, load_base, methods_of
from graft.runs.open import Opened
from graft.runs.run import RunObserver


class Cell(Protocol):
    """A run as both tools know it.  setting: has a `stage`, "sft" or "classify", and `new_tokens` of an answer."""

    setting: Any

    def material(self) -> Path:
        """The folder of its rows and test."""


def train(recipe: Recipe, observer: RunObserver | None = None) -> dict[str, Any]:
    """{losses, step_seconds} of the finished run, which stays in the recipe's output folder."""
    graft.run(recipe, observer=observer)
    output = Path(recipe.output)
    steps = _lines(output / "metrics.jsonl")
    seconds = [line["seconds"] for line in _lines(output / "timing.jsonl") if "seconds" in line]
    return {"losses": [line["loss"] for line in steps if "loss" in line], "step_seconds": seconds}


def score(cell: Cell, recipe: Recipe, opened: Opened) -> dict[str, Any]:
    """The test's numbers and some texts of the trained adapter, or of the bare base."""
    cases, _ = tasks.test_of(cell.material())
    base, feed = opened.base, test_feed(cell, recipe, opened.base, cases)
    trained = base.adapters[opened.adapter].count() if opened.adapter else 0
    with base.using(opened.adapter):
        if cell.setting.stage == "classify":
            return class_scores(*classes(base, feed)) | {"trained": trained}
        loss = perplexity(base, feed)["loss"]
        answers = opened.ask([c.prompt for c in cases], max_new_tokens=cell.setting.new_tokens, batch_size=50)
    return text_scores(answers, cases) | {"loss": loss, "trained": trained}


def untrained(recipe: Recipe) -> Opened:
    """The base before training; a classifier with its newborn head."""
    base = load_base(recipe)
    if recipe.stage != "classify":
        return Opened(base)
    base.attach("newborn", [methods_of(recipe, labels_of(recipe))[-1]])
    return Opened(base, "newborn")


def labels_of(recipe: Recipe) -> list[str]:
    """The classes of the training rows, in the order of their numbers."""
    return sorted({json.loads(line)["label"] for line in Path(str(recipe.data.train)).open(encoding="utf-8")})


def baselines(cell: Cell) -> dict[str, dict[str, Any]]:
    """The test's numbers of answers that need no model."""
    cases, _ = tasks.test_of(cell.material())
    answers = {name: [case.baselines[name] for case in cases] for name in cases[0].baselines}
    if cell.setting.stage == "classify":
        return {
            name: class_scores(texts, [c.references[0] for c in cases]) for name, texts in answers.items()
        }
    return {name: text_scores(texts, cases) for name, texts in answers.items()}


def test_feed(cell: Cell, recipe: Recipe, base: Any, cases: list[tasks.Case]) -> Feed:
    """The test as batches: the first reference of every case, or the class of every question."""
    kind = "label" if cell.setting.stage == "classify" else "pair"
    rows = [Row(f"test:{i}", kind, (case.prompt, case.references[0])) for i, case in enumerate(cases)]
    labels = labels_of(recipe) if kind == "label" else ()
    encoder = Encoder(
        base.tokenizer,
        stage=cell.setting.stage,
        family=base.family,
        max_length=recipe.data.max_length,
        labels=labels,
    )
    return feed(base, recipe, encoder(rows).examples, 50, 50)


def text_scores(answers: list[str], cases: list[tasks.Case]) -> dict[str, Any]:
    """BLEU and ROUGE-L with all references, and three texts to look at."""
    answers, references = [text.strip() for text in answers], [case.references for case in cases]
    shown = [{"prompt": case.prompt, "text": text} for case, text in zip(cases[:3], answers, strict=False)]
    return {"bleu": bleu(answers, references), "rouge_l": rouge_l(answers, references), "texts": shown}


def class_scores(predicted: list[Any], true: list[Any]) -> dict[str, Any]:
    """Accuracy and macro-F1, 0 … 100."""
    return {"accuracy": 100 * accuracy(predicted, true), "f1": 100 * macro_f1(predicted, true)}


def newborn(recipe: Recipe) -> tuple[Any, Feed, Any]:
    """(base, feed, adapter) as `graft.run` has them before its first step: what the peer starts from."""
    base = load_base(recipe)
    feed, labels = training_feed(recipe, base)
    torch.manual_seed(recipe.train.seed)
    return base, feed, base.attach("newborn", methods_of(recipe, labels))


def training_feed(recipe: Recipe, base: Any) -> tuple[Feed, list[str]]:
    """The recipe's batches, and the classes of its rows."""
    stage, seed = recipe.stage, recipe.train.seed
    prepared = graft.data.prepare(recipe.data, base.tokenizer, stage=stage, family=base.family, seed=seed)
    batches = feed(base, recipe, prepared.train, recipe.train.batch_size, recipe.train.micro_batch_size)
    return batches, prepared.labels or []


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
