"""The main job on the embedded model and data, with numbers that a program can check.

    QLoRA on "write a description from these attributes" → the same prompts before and after → merged export → reload

The products that are asked about have names that neither the model nor its training rows have seen. It counts as
success only if the texts state what was asked for, clearly more than before, and do not get there by copying the list
or by naming what any product has.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from transformers.models.auto.modeling_auto import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from graft import seedling
from graft.base.base import Base
from graft.recipe import Recipe, read
from graft.seedling import DATASETS
from graft.seedling.coverage import against_others, distinct_2, mean_coverage, unique_share, verbatim_share
from graft.seedling.products import Product, products
from graft.seedling.writing import prompt, sft_rows

ASKED = 60  # held-out products
LONGEST = 120  # tokens of an answer; references need about 70
COVERED, GAINED, ABOVE_CHANCE, VERBATIM = 0.90, 0.30, 0.10, 0.10
SAME = 1e-2  # of logits: the same bf16 weights, maybe other kernels
RECIPE = seedling.FOLDER / "demo.yaml"


@dataclass(frozen=True)
class Scores:
    """Measures of descriptions of many products, see `seedling.coverage`."""

    coverage: float
    others: float
    verbatim: float
    distinct_2: float
    unique: float


def recipe(folder: str | Path) -> Recipe:
    """What the demo trains, into this run folder."""
    return read(RECIPE, [f"output={folder}"])


def held_out() -> tuple[list[Product], list[str]]:
    """The products that are asked about, those of the embedded test rows, and the generator's descriptions of them."""
    _, _, seed, split = DATASETS["descriptions-held-out"]
    return list(islice(products(split, seed), ASKED)), [
        row["completion"] for row in sft_rows(ASKED, seed, split)
    ]


def answers(base: Base, adapter: str | None, items: Sequence[Product]) -> list[str]:
    """Greedy descriptions of these products."""
    prompts = [prompt(item) for item in items]
    return base.generate(prompts, adapters=[adapter] * len(items), max_new_tokens=LONGEST, batch_size=30)


def measure(texts: Sequence[str], items: Sequence[Product]) -> Scores:
    """All measures of one text per product."""
    return Scores(
        mean_coverage(texts, items),
        against_others(texts, items),
        verbatim_share(texts, items),
        distinct_2(texts),
        unique_share(texts),
    )


def shortfalls(before: Scores, after: Scores, chance: float) -> list[str]:
    """Why this does not count as success; empty where it does."""
    gain = after.coverage - before.coverage
    limit = chance + ABOVE_CHANCE
    demands = (
        (after.coverage >= COVERED, f"coverage is {after.coverage:.2f}, and {COVERED:.2f} is asked for"),
        (gain >= GAINED, f"coverage rose by {gain:.2f}, and {GAINED:.2f} is asked for"),
        (
            after.others <= limit,
            f"coverage of other products is {after.others:.2f}, and {limit:.2f} is allowed",
        ),
        (
            after.verbatim < VERBATIM,
            f"{after.verbatim:.0%} repeat the list, and fewer than {VERBATIM:.0%} may",
        ),
    )
    return [reason for held, reason in demands if not held]


@torch.no_grad()
def reload_difference(base: Base, folder: str | Path, item: Product) -> float:
    """Load the exported folder in plain transformers; largest difference of its logits from ours, for one prompt."""
    disable_progress_bar()
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=base.dtype, trust_remote_code=False)
    plain = plain.to(base.device).eval()
    ids = torch.tensor([base.tokenizer(prompt(item))["input_ids"]], device=base.device)
    return (plain(ids).logits - base(ids).logits).abs().max().item()
