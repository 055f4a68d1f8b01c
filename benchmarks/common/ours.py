"""Graft's side of a run: a recipe carried out by `graft.run`, its adapter opened again from the run's
folder."""

import json
from pathlib import Path
from typing import Any, Protocol

import internals
import tasks
import torch

import graft


class Cell(Protocol):
    """A run as both tools know it.  setting: has a `stage` ("sft" or "classify") and the `new_tokens` of an
    answer."""

    setting: Any

    def material(self) -> Path:
        """Return the folder of its rows and test."""


def train(recipe: graft.Recipe, observer: Any = None) -> dict[str, Any]:
    """Train by the recipe and return {losses, step_seconds}; the run stays in the recipe's output folder."""
    graft.run(recipe, observer=observer)
    output = Path(recipe.output)
    steps = _lines(output / "metrics.jsonl")
    seconds = [line["seconds"] for line in _lines(output / "timing.jsonl") if "seconds" in line]
    return {"losses": [line["loss"] for line in steps if "loss" in line], "step_seconds": seconds}


def score(cell: Cell, recipe: graft.Recipe, opened: Any) -> dict[str, Any]:
    """Return the test's measures and three texts, of the trained adapter or of the bare base."""
    cases, _ = tasks.test_of(cell.material())
    base, feed = opened.base, test_feed(recipe, opened.base, cases)
    trained = base.adapters[opened.adapter].count() if opened.adapter else 0
    with base.using(opened.adapter):
        if cell.setting.stage == "classify":
            return class_scores(*internals.classes(base, feed)) | {"trained": trained}
        loss = internals.mean_loss(recipe, base, feed)
        answers = opened.ask([c.prompt for c in cases], max_new_tokens=cell.setting.new_tokens, batch_size=50)
    return text_scores(answers, cases) | {"loss": loss, "trained": trained}


def untrained(recipe: graft.Recipe) -> Any:
    """Return the base before training; a classifier with its untrained head."""
    base = internals.load_base(recipe)
    if recipe.stage != "classify":
        return internals.Opened(base)
    base.attach("newborn", [internals.methods_of(recipe, internals.labels_of(recipe))[-1]])
    return internals.Opened(base, "newborn")


def baselines(cell: Cell) -> dict[str, dict[str, Any]]:
    """Return the test's measures of the answers that need no model, by their name."""
    cases, _ = tasks.test_of(cell.material())
    answers = {name: [case.baselines[name] for case in cases] for name in cases[0].baselines}
    if cell.setting.stage == "classify":
        return {
            name: class_scores(texts, [c.references[0] for c in cases]) for name, texts in answers.items()
        }
    return {name: text_scores(texts, cases) for name, texts in answers.items()}


def test_feed(recipe: graft.Recipe, base: Any, cases: list[tasks.Case]) -> Any:
    """Return the test as batches: the first reference of every case, or the class of every question."""
    return internals.test_feed(recipe, base, [(case.prompt, case.references[0]) for case in cases], 50)


def text_scores(answers: list[str], cases: list[tasks.Case]) -> dict[str, Any]:
    """Return BLEU and ROUGE-L with all references, and three texts to look at."""
    answers, references = [text.strip() for text in answers], [case.references for case in cases]
    shown = [{"prompt": case.prompt, "text": text} for case, text in zip(cases[:3], answers, strict=False)]
    return {
        "bleu": internals.bleu(answers, references),
        "rouge_l": internals.rouge_l(answers, references),
        "texts": shown,
    }


def class_scores(predicted: list[Any], true: list[Any]) -> dict[str, Any]:
    """Return accuracy and macro-F1, both from 0 to 100."""
    return {
        "accuracy": 100 * internals.accuracy(predicted, true),
        "f1": 100 * internals.macro_f1(predicted, true),
    }


def newborn(recipe: graft.Recipe) -> tuple[Any, Any, Any]:
    """Return (base, feed, adapter) as `graft.run` has them before its first step: the peer starts from
    them."""
    base = internals.load_base(recipe)
    feed, labels = internals.training_feed(recipe, base)
    torch.manual_seed(recipe.train.seed)
    return base, feed, base.attach("newborn", internals.methods_of(recipe, labels))


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
