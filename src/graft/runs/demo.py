"""The main job on the embedded model and data, with numbers that a program can check.

    QLoRA on "describe a product from these attributes" → the same prompts before and after → merged export →
    reload

The products of the prompts have names that neither the model nor its training rows contain. The demo succeeds
only if the texts state the attributes, clearly more than before, without copying the list and without naming
attributes that fit any product.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers.models.auto.modeling_auto import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from graft.base.base import Base
from graft.recipe import Recipe, read
from graft.seedling import DATASETS, DEMO
from graft.seedling.coverage import against_others, distinct_2, mean_coverage, unique_share, verbatim_share
from graft.seedling.products import Product, products
from graft.seedling.writing import prompt, sft_rows

ASKED = 60  # held-out products
LONGEST = 120  # tokens of an answer; references need about 70
COVERED = 0.90  # coverage that the trained model must reach
GAINED = 0.30  # coverage that training must add
ABOVE_CHANCE = 0.10  # how far coverage of other products may exceed that of the references
VERBATIM = 0.10  # share of texts that may repeat the list
SAME = 1e-2  # of logits: the same weights, maybe other kernels


@dataclass(frozen=True)
class Scores:
    """Measures of the descriptions of many products; see `seedling.coverage`."""

    coverage: float
    others: float
    verbatim: float
    distinct_2: float
    unique: float


def recipe(folder: str | Path) -> Recipe:
    """Return the demo's recipe, with this run folder."""
    return read(DEMO, [f"output={folder}"])


def held_out() -> tuple[list[Product], list[str]]:
    """Return the products of the embedded test rows, and the generator's descriptions of them."""
    _, _, seed, split = DATASETS["descriptions-held-out"]
    descriptions = [row["completion"] for row in sft_rows(ASKED, seed, split)]
    return list(islice(products(split, seed), ASKED)), descriptions


def answers(
    base: Base,
    adapter: str | None,
    items: Sequence[Product],
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Return the model's greedy descriptions of these products.

    adapter: None is the bare base.  progress: called with (texts that are written, texts).
    """
    prompts = [prompt(item) for item in items]
    how: dict[str, Any] = {"max_new_tokens": LONGEST, "batch_size": 30, "progress": progress}
    return base.generate(prompts, adapters=[adapter] * len(items), **how)


def measure(texts: Sequence[str], items: Sequence[Product]) -> Scores:
    """Return all measures of one text per product."""
    return Scores(
        mean_coverage(texts, items),
        against_others(texts, items),
        verbatim_share(texts, items),
        distinct_2(texts),
        unique_share(texts),
    )


def shortfalls(before: Scores, after: Scores, chance: float) -> list[str]:
    """Return why the demo failed; empty if it succeeded.

    chance: coverage of other products in the references.
    """
    gain = after.coverage - before.coverage
    limit = chance + ABOVE_CHANCE
    of_others = f"coverage of other products is {after.others:.2f}, and at most {limit:.2f} is allowed"
    demands = (
        (after.coverage >= COVERED, f"coverage is {after.coverage:.2f}, and {COVERED:.2f} is required"),
        (gain >= GAINED, f"coverage rose by {gain:.2f}, and {GAINED:.2f} is required"),
        (after.others <= limit, of_others),
        (
            after.verbatim < VERBATIM,
            f"{after.verbatim:.0%} repeat the list, and fewer than {VERBATIM:.0%} may",
        ),
    )
    return [reason for met, reason in demands if not met]


@torch.no_grad()
def reload_difference(base: Base, folder: str | Path, item: Product) -> float:
    """Return the largest difference, for one prompt, of our logits from those of plain transformers.

    base: the exported model as Graft loads it.  folder: where it lies, for transformers to load.
    """
    disable_progress_bar()
    plain: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=base.dtype, trust_remote_code=False)
    plain = plain.to(base.device).eval()
    ids = torch.tensor([base.tokenizer(prompt(item))["input_ids"]], device=base.device)
    return (plain(ids).logits - base(ids).logits).abs().max().item()
