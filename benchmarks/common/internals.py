"""What benchmarks need from inside Graft: no other file of them imports names that are not public.

Everything else goes through `graft.run`, `graft.load`, `graft.export`, `Base` and the methods' classes. First
come the names that are used as they are, with the reason. Each is imported when it is first used, so that
tables are made without importing torch. Then come functions for the parts of a run that no public function
does alone.
"""

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import graft

_HOME = {
    # The peer gets exactly our batches and our start: the parts of a run before its first step.
    "read": "recipe",
    "load_base": "runs.build",
    "methods_of": "stages.stage",
    "prompt_ids": "data",
    # A finished run, opened again.
    "Opened": "runs.open",
    "open_model": "runs.open",
    # What a run reports, and how it stops: memory is measured in between, and divergence is a result.
    "Observer": "training.observer",
    "Interrupted": "storage.signals",
    "TrainingError": "errors",
    # The measures of the tables.
    "accuracy": "evaluate.metrics",
    "bleu": "evaluate.metrics",
    "macro_f1": "evaluate.metrics",
    "rouge_l": "evaluate.metrics",
    "classes": "evaluate.losses",
    # methods: which methods have a file, and where they sit.
    "cards": "core.cards",
    # shipping: the seedling's test rows and their measure; GPTQ.
    "dataset": "seedling",
    "mean_coverage": "seedling.coverage",
    "demo": "runs",
    "quantise": "runs.quantise",
    # speed: a prompt of the demo; `demo` and Observer are above.
    "prompt": "seedling.writing",
    # memory, ladder.py: what operations hold, and a base without a file.
    "fresh": "models.fresh",
    "Ledger": "planning.ledger",
    "QuantLinear": "quant",
    # What the loop asks of a source of batches beside them.
    "Source": "data.feed",
    # gpu: models that are made on the device, packed tensor by tensor; QuantLinear is above.
    "Scheme": "quant",
    # alignment: rewards that a program gives; `dataset`, `open_model`, `Observer` are above.
    "preferences": "seedling",
    # judging: ratings, biases and agreement of judgements.
    "Judgement": "evaluate.judgements",
    "games": "evaluate.judgements",
    "bradley_terry": "evaluate.tournament",
    "elo": "evaluate.tournament",
    "elo_over_prompts": "evaluate.tournament",
    "fleiss_kappa": "evaluate.agreement",
    "kendall_tau": "evaluate.agreement",
    "length_bias": "evaluate.agreement",
    "order_bias": "evaluate.agreement",
    "relative_scores": "evaluate.agreement",
    "spearman": "evaluate.agreement",
    # ipt.py: the paper's first step is no public function.
    "find_subspace": "methods.ipt",
    # reliability/cost.py: what is measured.
    "commit": "storage",
    "Checkpoints": "training.checkpoint",
    # reliability/errors.py damages a copy of the seedling.
    "SEEDLING": "seedling",
    # What is compared with its digests while it is loaded.
    "as_they_are": "storage",
    # votes: a server of the studio without a model, and its file of votes.
    "bare_app": "serve.app",
    "add_studio": "serve.studio.app",
    "Studio": "serve.studio.state",
    "Battle": "serve.studio.votes",
    "Contestant": "serve.studio.votes",
    "Votes": "serve.studio.votes",
}
_INSIDE = {"SEEDLING": "FOLDER"}  # what it is called there


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"{__file__} lists no {name!r}")
    home, inside = f"graft.{_HOME[name]}", _INSIDE.get(name, name)
    module = importlib.import_module(home)
    if not hasattr(module, inside) and hasattr(module, "__path__"):  # a module of a package
        return importlib.import_module(f"{home}.{inside}")
    return getattr(module, inside)


def training_feed(recipe: graft.Recipe, base: Any) -> tuple[Any, list[str]]:
    """Return the batches of a recipe's training rows, as its run has them, and the classes of the rows."""
    from graft import seedling
    from graft.data import prepare
    from graft.runs.build import feed
    from graft.stages.stage import stage_of

    settings = seedling.located(recipe.data)
    prepared = prepare(settings, base.tokenizer, stage_of(recipe), family=base.family)
    batches = feed(base, recipe, prepared.train, recipe.train.batch_size, recipe.train.micro_batch_size)
    return batches, prepared.labels


def test_feed(recipe: graft.Recipe, base: Any, pairs: Sequence[tuple[str, str]], rows: int) -> Any:
    """Return prompts with their answers, or texts with their classes, as batches of so many rows."""
    from graft.data.rows import Row
    from graft.runs.build import feed
    from graft.stages.stage import stage_of

    stage = stage_of(recipe)
    kind = "label" if stage.labelled else "pair"
    labels = labels_of(recipe) if stage.labelled else ()
    encoder = stage.encoder(base.tokenizer, base.family, recipe.data, labels)
    examples = encoder([Row(f"test:{i}", kind, pair) for i, pair in enumerate(pairs)]).examples
    return feed(base, recipe, examples, rows, rows)


def pair_margins(opened: Any, recipe: graft.Recipe, rows: Path) -> list[float]:
    """Return by how much the chosen answer of every pair is ahead, by an opened run of reward or DPO.

    It is the reward's difference, or β times that of the log-ratios to the model that training started from.
    """
    import torch

    from graft import seedling
    from graft.data import prepare
    from graft.objectives.preference import answer_logprobs
    from graft.objectives.reward import answer_rewards
    from graft.runs.build import feed
    from graft.stages.stage import stage_of

    base, stage = opened.base, stage_of(recipe)
    settings = seedling.located(recipe.data.model_copy(update={"train": str(rows), "eval": None}))
    examples = prepare(settings, base.tokenizer, stage, family=base.family).train
    batches = feed(base, recipe, examples, recipe.evaluate.batch_size, recipe.evaluate.batch_size)
    batches = stage.before_scoring(base, opened.adapter, batches, opened.folder)
    margins: dict[str, float] = {}
    with base.using(opened.adapter), torch.no_grad():
        for step in range(batches.steps_per_epoch):
            for batch in batches.step(0, step):
                if stage.headed:
                    values = answer_rewards(base, batch)
                else:
                    values = stage.beta * (answer_logprobs(base, batch)[0] - batch.reference)
                better, worse = batch.pairs()
                found = (values[better] - values[worse]).tolist()
                margins |= zip((batch.sources[row] for row in batch.row[better].tolist()), found, strict=True)
    return [margins[source] for source in sorted(margins, key=line_of)]


def online_scores(opened: Any, recipe: graft.Recipe, rows: Path, limit: int) -> dict[str, float]:
    """Return what an online stage reports of sampled answers to the first `limit` prompts of a file."""
    from graft import seedling
    from graft.data import prepare
    from graft.runs.build import feed
    from graft.stages.stage import stage_of

    base, stage = opened.base, stage_of(recipe)
    settings = seedling.located(recipe.data.model_copy(update={"train": str(rows), "eval": None}))
    examples = list(prepare(settings, base.tokenizer, stage, family=base.family).train)[:limit]
    batches = feed(base, recipe, examples, recipe.evaluate.batch_size, recipe.evaluate.batch_size)
    batches = stage.before_scoring(base, opened.adapter, batches, opened.folder)
    with base.using(opened.adapter):
        scores: dict[str, float] = stage.scores(*stage.summed(base, batches))
    return scores


def line_of(source: str) -> int:
    """Return the number of a row's line, from 1, in the file that its source names."""
    return int(source.rpartition(":")[2])


def labels_of(recipe: graft.Recipe) -> list[str]:
    """Return the classes of the training rows, in the order of their numbers."""
    return sorted({json.loads(line)["label"] for line in Path(str(recipe.data.train)).open(encoding="utf-8")})


def mean_loss(recipe: graft.Recipe, base: Any, feed: Any) -> float:
    """Return the mean loss of a feed's supervised tokens, or rows, as the recipe's stage computes it."""
    from graft.evaluate.losses import losses
    from graft.stages.stage import stage_of

    return losses(base, feed, stage_of(recipe))["loss"]


def random_batch(base: Any, ids: Any) -> Any:
    """Return rows of token ids (B, T) as a batch in which every token is supervised."""
    import torch

    from graft.data.batches import Batch

    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return Batch(inputs, ids, ids.shape[0] * (ids.shape[1] - 1), ["random"])


def random_feed(ids: Any, rows: int) -> Any:
    """Return token ids (N, T) as batches of so many rows for a causal model, every token supervised."""
    from types import SimpleNamespace

    from graft.data.batches import TokenBatches
    from graft.data.encode import Example
    from graft.data.feed import Feed

    examples = [Example(row, row, f"rows:{number}") for number, row in enumerate(ids.tolist())]
    tokenizer = SimpleNamespace(pad_token_id=0, eos_token_id=2)
    return Feed(examples, TokenBatches(tokenizer, ids.shape[1], causal=True), rows, rows)


def trained_loss(
    base: Any, name: str, feed: Any, folder: str, *, observer: Any = None, **settings: Any
) -> float:
    """Train an adapter on batches of next tokens, by these settings of `train:`; return the last loss."""
    from graft.objectives.lm import language_modelling
    from graft.recipe import Train
    from graft.training import Task, Trainer

    task = Task(feed, language_modelling)
    return Trainer(base, name, task, Train(**settings), folder, observer).run().loss


def packed_batch(base: Any, ids: Any) -> Any:
    """Return the same as full packed rows."""
    from graft.data.batches import Batch
    from graft.data.pack import packed

    rows = ids.tolist()
    inputs, labels = packed([[(row, list(row))] for row in rows], pad=0, causal=base.family == "causal")
    return Batch(inputs, labels, ids.shape[0] * (ids.shape[1] - 1), ["random"])


def loss_of(base: Any, batch: Any) -> Any:
    """Return the loss of next tokens, as training computes it."""
    from graft.objectives.lm import language_modelling

    return language_modelling(base, batch)[0]


def optimizer_of(name: str, adapter: Any, lr: float) -> Any:
    """Return an optimizer of Graft for the adapter, without weight decay; `step(scale)` is one step."""
    from graft.training.optimizers import build
    from graft.training.paging import Pages

    groups = [{"weight_decay": 0.0, **group} for group in adapter.param_groups(lr)]
    return build(name, dict(adapter.named_parameters()), groups, Pages())


def mark_optimizer(label: str) -> None:
    """Let torch's profiler show every step of Graft's optimizer as a range of this name."""
    import torch

    from graft.training.optimizers import AdamW

    step = AdamW.step

    def marked(self: Any, *how: float) -> None:
        with torch.profiler.record_function(label):
            step(self, *how)

    AdamW.step = marked
