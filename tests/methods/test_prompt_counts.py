"""What soft prompts train, on published shapes: the figures of their papers, and the formulas they come from."""

import pytest
import torch
from transformers.models.roberta.configuration_roberta import RobertaConfig
from transformers.models.roberta.modeling_roberta import RobertaForMaskedLM
from transformers.models.t5.configuration_t5 import T5Config
from transformers.models.t5.modeling_t5 import T5ForConditionalGeneration

from graft.base import Base
from graft.methods._ipt_subspace import AutoEncoder
from graft.methods.ipt import IPT
from graft.methods.p_tuning import PTuning
from graft.methods.prefix import PrefixTuning
from graft.methods.prompt import PromptTuning
from graft.methods.warp import WARP
from shapes import bert_base, llama_2_7b


def roberta_large():
    """The masked language model."""
    with torch.device("meta"):
        sizes = {"num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096, "vocab_size": 50265}
        return Base(RobertaForMaskedLM(RobertaConfig(hidden_size=1024, **sizes)))


def t5_xxl():
    """Its width, with one layer of each stack: a prompt stands before the first."""
    with torch.device("meta"):
        return Base(T5ForConditionalGeneration(T5Config(d_model=4096, num_layers=1, num_heads=64, d_ff=64)))


L, D, M = 32, 4096, 512  # Llama-2-7B, and the width of prefix tuning's MLP
TABLE = [
    (llama_2_7b, PromptTuning(20), 81_920, 20 * D),
    (llama_2_7b, PromptTuning(100), 409_600, 100 * D),
    (t5_xxl, PromptTuning(100), 409_600, 100 * 4096),
    (t5_xxl, PromptTuning(100, num_transformer_submodules=2), 819_200, 2 * 100 * 4096),  # as PEFT has it
    (llama_2_7b, PrefixTuning(30), 7_864_320, 2 * L * 30 * D),
    (bert_base, PrefixTuning(30), 552_960, 2 * 12 * 30 * 768),
    (
        llama_2_7b,
        PrefixTuning(30, prefix_projection=True),
        136_700_416,
        30 * D + (D + 1) * M + (M + 1) * 2 * L * D,
    ),
    (llama_2_7b, PTuning(20), 50_425_856, 20 * D + 3 * (D + 1) * D),  # with the encoder, which is left behind
    (llama_2_7b, PTuning.from_file({"num_virtual_tokens": 20}), 81_920, 20 * D),
    (bert_base, IPT(100, 250, hidden_size=8), 250, 250),
    (roberta_large, WARP(num_labels=2), 22_528, (20 + 2) * 1024),
]


@pytest.mark.parametrize(("make", "method", "count", "formula"), TABLE)
def test_counts(make, method, count, formula):
    assert make().attach("x", method).count() == count == formula


def test_the_auto_encoder_behind_250_intrinsic_dimensions():
    with torch.device("meta"):
        coder = AutoEncoder(100 * 768, 250, 768)
    assert sum(p.numel() for p in coder.parameters()) == 78_452_218
