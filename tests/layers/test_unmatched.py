"""Entries of settings that match nothing are named, and none is named where all match."""

import warnings

import pytest

from graft.errors import Notice, SiteError
from graft.methods.bitfit import BitFit
from graft.methods.houlsby import Houlsby
from graft.methods.ia3 import IA3
from graft.methods.loha import LoHa
from graft.methods.lora import LoRA
from graft.methods.oft import OFT
from graft.methods.subset import Subset
from graft.methods.vera import VeRA
from models import tiny_base

LLAMA_NAMES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# family, method, what the notice says
UNMATCHED = {
    "fused": ("phi3", LoRA(target_modules=LLAMA_NAMES), "q_proj, k_proj, v_proj, gate_proj, up_proj match"),
    "one": ("gpt2", LoHa(target_modules=("c_attn", "q_proj")), "target_modules: q_proj match"),
    "other-method": ("llama", OFT(target_modules=("q_proj", "fc1")), "target_modules: fc1 match"),
    "excluded": ("llama", LoRA(exclude_modules=("fc2", "q_proj")), "exclude_modules: fc2 match"),
    "excluded-expression": ("llama", LoRA(exclude_modules=r".*\.fc2"), r"exclude_modules: .*\.fc2 match"),
    "layers": ("llama", LoRA(layers_to_transform=(1, 7, 9)), "layers_to_transform: 7, 9 are blocks without"),
    "pattern": (
        "llama",
        VeRA(layers_to_transform=1, layers_pattern=("layers", "h"), target_modules=("q_proj",)),
        "layers_pattern: h match",
    ),
    "pattern-alone": ("llama", LoRA(layers_pattern="layers"), "no effect without layers_to_transform"),
    "ranks": ("llama", LoRA(rank_pattern={"q_proj": 4, "wq": 2}), "rank_pattern: wq decide nothing"),
    "hidden-rank": (
        "llama",
        LoRA(rank_pattern={".*_proj": 4, "q_proj": 2}),
        "rank_pattern: q_proj decide nothing",
    ),
    "alphas": ("llama", LoHa(alpha_pattern={"fc1": 4}), "alpha_pattern: fc1 decide nothing"),
    "ia3": (
        "llama",
        IA3(target_modules=("k_proj", "down_proj"), feedforward_modules=("down_proj", "fc2")),
        "feedforward_modules: fc2 match",
    ),
    "biases": ("qwen2", BitFit(target_modules=("q_proj", "o_proj")), "target_modules: o_proj have no bias"),
    "subset": (
        "llama",
        Subset(top_layers=1, target_modules=("lm_head", "pooler")),
        "target_modules: pooler match",
    ),
    "too-many-blocks": ("llama", Subset(top_layers=5), "top_layers: 5 are all 2 blocks"),
    "left-out": ("llama", Houlsby(leave_out=(1, 12)), "leave_out: 12 name no block"),
    "no-cross": ("llama", Houlsby(cross_adapter=True), "houlsby: cross_adapter finds no cross sublayer"),
}


@pytest.mark.parametrize("case", UNMATCHED)
def test_what_matches_nothing_is_named(case):
    family, method, said = UNMATCHED[case]
    with pytest.warns(Notice) as notices:
        tiny_base(family).attach("x", method)
    assert said in " ".join(str(n.message) for n in notices)


@pytest.mark.parametrize(
    ("family", "method"),
    [
        ("llama", LoRA(target_modules=LLAMA_NAMES, rank_pattern={"q_proj": 4}, exclude_modules=("lm_head",))),
        ("llama", LoRA(layers_to_transform=(0, 1), layers_pattern="layers")),
        ("t5", Houlsby(cross_adapter=True)),
        ("llama", Subset(top_layers=2, target_modules=("embed_tokens",))),
        ("bert", BitFit(target_modules=("query", "intermediate.dense"))),
    ],
)
def test_nothing_is_said_where_all_entries_match(family, method):
    with warnings.catch_warnings():
        warnings.simplefilter("error", Notice)
        tiny_base(family).attach("x", method)


def test_targets_of_which_all_are_left_out_are_an_error_that_names_the_setting():
    with pytest.raises(SiteError, match=r"layers_to_transform=\(5,\) leaves no target.*blocks are 0 to 1"):
        tiny_base("llama").attach("x", LoRA(layers_to_transform=(5,)))
