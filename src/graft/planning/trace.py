"""Trace a run: what it holds and what its steps take, found by running a few of them on sketches."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from graft.base.native_decoder import DECODED, LARGE_HEAD
from graft.core.method import Method
from graft.core.positions import context_length
from graft.objectives.lm import CHUNK
from graft.planning.costs import Facts, Held, Law
from graft.planning.held import held_by
from graft.planning.sketch import Step, Traced, depth_of
from graft.recipe import Recipe
from graft.stages.online import AT_ONCE, Online
from graft.stages.rewards import is_function
from graft.stages.sft import SFT
from graft.stages.stage import Stage

PADDED = 16  # the decoder's cache has heads whose width is a multiple of it
MOST_READ = 32 << 20  # bytes of a file whose lines are counted
CHOOSING = 4  # tensors of the size of the logits, in fp32, while tokens are drawn


@dataclass(frozen=True)
class Shape:
    """The shape of a run's steps, for memory planning.

    rows: of a micro-batch.  length: tokens of a row.  eval_rows: rows of an evaluation's batch.
    budget: bytes of optimizer states that a paged optimizer keeps resident.
    stage: makes the batch and its loss.  step_rows: of an optimizer step, 0: those of a micro-batch.
    steps: of the run, None if that is not known.  beside: bytes of adapters beside the trained one.
    writes: whether texts are written between steps.
    """

    rows: int = 2
    length: int = 1024
    eval_rows: int = 8
    checkpointing: bool = False
    optimizer: str = "adamw"
    budget: int = 0
    stage: Stage = SFT
    step_rows: int = 0
    steps: int | None = None
    beside: int = 0
    writes: bool = False

    def step(self, rows: int | None = None) -> Step:
        """Return one micro-batch of this shape, or of so many rows."""
        return Step(rows or self.rows, self.length, self.checkpointing, self.stage.as_planned())


def trace(
    config: Any, methods: Sequence[Method], shape: Shape, loading: dict[str, Any], *, brief: bool = False
) -> Facts:
    """Return what steps of this shape take.  loading: quant, group_size, dtype and task of the base.

    brief: only whether the run fits is asked, not what else would.
    """
    stage = shape.step().stage
    held = held_by(config, methods, stage, shape.optimizer, shape.budget, loading)
    traced = Traced(config, methods, stage, uniform=held.uniform, **loading)
    run = traced.cost(shape.step())
    limit = context_length(config)
    if limit is not None:
        limit -= traced.taken
    plain = replace(shape, checkpointing=False)
    by_kernels = shape.writes and not torch.cuda.is_available()
    return Facts(
        base=config.model_type,
        held=held,
        rows=shape.rows,
        length=shape.length,
        step_rows=shape.step_rows or shape.rows,
        steps=shape.steps,
        checkpointing=shape.checkpointing,
        budget=shape.budget,
        rank=next((method.r for method in methods if hasattr(method, "r")), 0),
        quantisable=all(method.quantisable for method in methods),
        run=run,
        law=Law(0.0, 0.0, 0.0) if brief else _law(traced, shape, limit),
        recomputed=run if shape.checkpointing else traced.cost(replace(shape, checkpointing=True).step()),
        evaluation=traced.cost(plain.step(_read_at_once(shape)), training=False),
        beside=shape.beside + (decoder_copies(held, config, loading) if by_kernels else 0),
        writing=writing(stage, config, shape.length, loading["dtype"]),
        positions=context_length(config),
    )


def _law(traced: Traced, shape: Shape, limit: int | None) -> Law:
    """Return how the bytes of a step grow.  limit: tokens that its positions hold, None for any number."""
    length = shape.length if limit is None or 2 * shape.length <= limit else max(shape.length // 2, 1)
    # Logits exist for one chunk of positions at a time: from so many rows on, each costs the same.
    rows = max(shape.rows, -(-CHUNK // length))
    steps = [(rows, length), (2 * rows, length), (rows, 2 * length)]
    here, more, longer = (traced.cost(replace(shape, length=n).step(m)).tensors for m, n in steps)
    return Law.through(rows, length, (here, more, longer))


def _read_at_once(shape: Shape) -> int:
    """Return how many rows are read at once without gradients; what was written is read as it is learnt."""
    return shape.rows if shape.stage.online else shape.eval_rows


def steps_of(recipe: Recipe, stage: Stage) -> int | None:
    """Return the most steps that a run takes, by the lines of its file of rows; None if they are not known.

    Rows that share one make it fewer, and so do those that are held out.
    """
    file = Path(str(recipe.data.train)).expanduser()
    if stage.online or file.suffix != ".jsonl" or not file.is_file() or file.stat().st_size > MOST_READ:
        return None
    rows = sum(1 for line in file.read_bytes().splitlines() if line.strip())
    rows = min(rows, recipe.data.limit or rows)
    return math.ceil(recipe.train.epochs * rows / recipe.train.batch_size)


def writing(stage: Stage, config: Any, length: int, dtype: torch.dtype) -> int:
    """Return the bytes of writing answers: keys and values of all that are written at once, and logits."""
    if not isinstance(stage, Online):
        return 0
    text = config.get_text_config()
    heads = getattr(text, "num_attention_heads", None) or 1
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    rows = min(AT_ONCE, stage.prompts * stage.group)
    shared = getattr(text, "num_key_value_heads", None) or heads
    cached = 2 * depth_of(config) * rows * shared * (length - 1) * -(-width // PADDED) * PADDED
    return int(cached * dtype.itemsize + CHOOSING * 4 * rows * text.vocab_size)


def decoder_copies(held: Held, config: Any, loading: dict[str, Any]) -> int:
    """Return the bytes that the native decoder has of its own: scales, the head in 16 and in 8 bits."""
    text = config.get_text_config()
    head = getattr(text, "vocab_size", 0) * getattr(text, "hidden_size", 0)
    blocks = held.parameters - (1 if getattr(text, "tie_word_embeddings", True) else 2) * head
    scales = min(4 * blocks // 64, DECODED) if loading["quant"] in ("nf4", "fp4") else 0
    rough = head if loading["quant"] != "none" and 2 * head >= LARGE_HEAD else 0
    return int(scales + rough + (2 * head if loading["dtype"] == torch.float32 else 0))


def beside(recipe: Recipe, stage: Stage) -> int:
    """Return the bytes of the adapters that lie on the base beside the one that is trained: of rewards, and a
    reference, which is a copy of the adapter that training goes on from.
    """
    if not isinstance(stage, Online):
        return 0
    named = [name for name in (stage.paying if stage.rewards else []) if not is_function(name)]
    folders = [*map(Path, named), *([Path(recipe.adapter)] if recipe.adapter is not None else [])]
    files = [
        file
        for folder in folders
        for place in ("", "adapter")
        for file in (folder / place).glob("*.safetensors")
    ]
    return sum(file.stat().st_size for file in files)
