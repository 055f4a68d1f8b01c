"""The largest of the usual models with which a run fits here: same method, stage, formats and rows."""

from typing import Any

from transformers.models.llama.configuration_llama import LlamaConfig

from graft.models.load import DTYPES
from graft.planning.dtype import settled
from graft.planning.estimate import Plan
from graft.planning.plan import room_here, run_of
from graft.recipe import Recipe

# name: (blocks, width, inner width, heads, heads of keys and values, vocabulary, tied head). The first one is
# the smallest. Where a model is no Llama, its few other tensors change nothing here.
USUAL = {
    "0.5B (Qwen 2.5)": (24, 896, 4864, 14, 2, 151_936, True),
    "1.1B (TinyLlama)": (22, 2048, 5632, 32, 4, 32_000, False),
    "1.5B (Qwen 2.5)": (28, 1536, 8960, 12, 2, 151_936, True),
    "3B (Llama 3.2)": (28, 3072, 8192, 24, 8, 128_256, True),
    "7B (Llama 2)": (32, 4096, 11008, 32, 32, 32_000, False),
    "8B (Llama 3.1)": (32, 4096, 14336, 32, 8, 128_256, False),
    "14B (Qwen 2.5)": (48, 5120, 13824, 40, 8, 152_064, False),
    "32B (Qwen 2.5)": (64, 5120, 27648, 40, 8, 152_064, False),
    "70B (Llama 3.1)": (80, 8192, 28672, 64, 8, 128_256, False),
}


def config_of_usual(name: str) -> Any:
    """Return transformers' configuration of one of USUAL."""
    blocks, width, inner, heads, shared, vocabulary, tied = USUAL[name]
    return LlamaConfig(
        num_hidden_layers=blocks, hidden_size=width, intermediate_size=inner, num_attention_heads=heads,
        num_key_value_heads=shared, vocab_size=vocabulary, tie_word_embeddings=tied,
        max_position_embeddings=1 << 17,
    )  # fmt: skip


def largest_model(recipe: Recipe) -> str | None:
    """Return the name of the largest of USUAL with which a run of this recipe fits; None if none does."""
    names, few, many = list(USUAL), 0, len(USUAL)
    while few < many:
        half = (few + many) // 2
        few, many = (half + 1, many) if _fits(recipe, names[half]) else (few, half)
    return names[few - 1] if few else None


def _fits(recipe: Recipe, name: str) -> bool:
    """Return whether a run on this model fits; in bf16 or with checkpointing, where the recipe allows it."""
    run, room = run_of(recipe, config_of_usual(name)), room_here()
    auto = recipe.train.gradient_checkpointing == "auto"

    def plan_in(dtype: str) -> Plan:
        facts = run.facts(DTYPES[dtype], brief=True)
        return run.plan(facts, room, dtype, may_recompute=auto)

    return settled(recipe.dtype, plan_in).fits
