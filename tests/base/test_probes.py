"""Whether documents may share a row is tried, not looked up."""

import pytest
import torch
from transformers import AutoConfig
from transformers.models.gpt2.modeling_gpt2 import GPT2LMHeadModel
from transformers.models.llama.modeling_llama import LlamaForCausalLM

from graft.base.base import Base
from graft.base.probes import few_ids, outer_blocks, tried
from graft.core.positions import first_position
from graft.data.batches import TokenBatches
from graft.data.encode import IGNORED, Example
from graft.data.feed import Feed
from graft.methods.lora import LoRA
from graft.objectives.lm import language_modelling
from graft.quant import quantise_model
from models import tiny_model

LLAMA = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 4,
    "intermediate_size": 128,
    "vocab_size": 96,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MAMBA = {
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_d_state": 16,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 16,
}
LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16,
          "linear_value_head_dim": 16, "head_dim": 16}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
RUNNING = {
    "lfm2_moe": LLAMA | EXPERTS | {"layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1},
    "olmo_hybrid": LLAMA | LINEAR | {"layer_types": ["linear_attention", "full_attention"] * 2},
    "granitemoehybrid": LLAMA | MAMBA | {"layer_types": ["mamba", "attention"] * 2, "num_local_experts": 0,
                                         "shared_intermediate_size": 64},
    "falcon_h1": LLAMA | MAMBA | {"mamba_d_ssm": 128},
}  # fmt: skip
ATTENDING = {
    "llama": LLAMA,
    "mixtral": LLAMA | {"num_local_experts": 4},
    "falcon": LLAMA | {"new_decoder_architecture": True, "alibi": False, "num_kv_heads": 2},
    "gpt2": {"n_embd": 64, "n_head": 4, "n_layer": 4, "vocab_size": 96, "n_positions": 64},
    "lfm2": LLAMA | {"layer_types": ["full_attention"] * 4},
}


class Tokens:
    pad_token_id, eos_token_id, mask_token_id = 0, 2, 4


class Neighbours(LlamaForCausalLM):
    """The ids themselves meet: a token's embedding depends on the id before it, whatever the mask says."""

    def forward(self, input_ids, **kwargs):
        before = torch.nn.functional.pad(input_ids, (1, 0))[:, :-1]
        return super().forward((input_ids * 7 + before * 13) % self.config.vocab_size, **kwargs)


class Counting(GPT2LMHeadModel):
    """Does not listen to positions."""

    def forward(self, input_ids, position_ids=None, **kwargs):
        return super().forward(input_ids, **kwargs)


def own_class(cls):
    torch.manual_seed(0)
    config = AutoConfig.for_model("gpt2" if cls is Counting else "llama")
    for key, value in ATTENDING[config.model_type].items():
        setattr(config, key, value)
    return Base(cls(type(config)(**ATTENDING[config.model_type])))


def loss_of(base, documents, *, packed):
    """The mean loss of documents; packed: if the base allows it."""
    pack = packed and base.unpackable(64) is None
    first = first_position(base.model.config)
    examples = [Example(ids, [IGNORED, *ids[1:]]) for ids in documents]
    feed = Feed(examples, TokenBatches(Tokens, 64, causal=True, pack=pack, first_position=first), 4, 4)
    with torch.no_grad():
        return sum(language_modelling(base, batch)[0].item() for batch in feed.step(0, 0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", RUNNING)
def test_states_and_convolutions_that_run_along_a_row_are_found(family, dtype):
    base = Base(tiny_model(family, **RUNNING[family]).to(dtype))
    assert "one document reaches the next" in base.unpackable(64)


@pytest.mark.parametrize("family", RUNNING)
def test_such_a_model_learns_every_document_as_alone(family):
    base = Base(tiny_model(family, **RUNNING[family]))
    chance = torch.Generator().manual_seed(1)
    documents = [torch.randint(3, 96, (n,), generator=chance).tolist() for n in (9, 5, 14, 7)]
    expected = 0.0
    with torch.no_grad():
        for ids in documents:
            logits = base.model(torch.tensor([ids]), use_cache=False).logits[0, :-1]
            expected += torch.nn.functional.cross_entropy(
                logits, torch.tensor(ids[1:]), reduction="sum"
            ).item()
    for packed in (False, True):
        assert loss_of(base, documents, packed=packed) == pytest.approx(expected, rel=2e-5)


@pytest.mark.parametrize("form", ["fp32", "bf16", "nf4"])
@pytest.mark.parametrize("family", ATTENDING)
def test_a_model_of_attention_alone_is_packed(family, form):
    model = tiny_model(family, **ATTENDING[family])
    if form == "nf4":
        quantise_model(model, "nf4")
    base = Base(model.bfloat16() if form == "bf16" else model)
    assert base.unpackable(64) is None
    assert base.unpackable(64) is None  # and the answer is kept


@pytest.mark.parametrize("cls", [Neighbours, Counting])
def test_documents_that_are_not_as_alone_for_another_reason_are_found(cls):
    assert "not as alone" in own_class(cls).unpackable(64)


def test_an_adapter_does_not_change_the_answer():
    base = Base(tiny_model("llama", **LLAMA))
    base.attach("a", LoRA(r=2))
    with base.using("a"):
        assert base.unpackable(64) is None


def test_one_block_of_each_kind_runs():
    family = "olmo_hybrid"
    base = Base(tiny_model(family, **RUNNING[family]))
    ran = []
    for index, block in enumerate(outer_blocks(base.model)):
        block.mlp.register_forward_hook(lambda *_, index=index: ran.append(index))
    base.probe()
    assert ran == [0, 1]
    assert base.unpackable(64) and ran == [0, 1, 0, 1]


def test_blocks_that_lean_on_each_other_all_run():
    model = tiny_model("llama", **LLAMA)
    seen = []
    model.model.layers[2].mlp.register_forward_hook(lambda *_: seen.append("what the third block made"))
    last = model.model.layers[3]
    last.reads = "what the third block made"  # another kind of block than the others, so it runs

    def read(*_):
        seen[0]

    last.register_forward_pre_hook(read)
    assert tried(model, lambda: model(torch.tensor([[5, 6]])).logits).shape == (1, 2, 96)


def test_ids_of_a_probe_are_ordinary_tokens():
    model = tiny_model("llama", **LLAMA | {"image_token_id": 4})
    assert few_ids(model, 4) == [3, 5, 6, 7] and few_ids(model, 2, start=4) == [8, 9]
    assert set(few_ids(tiny_model("llama", **LLAMA | {"vocab_size": 6}), 9)) == {3, 4, 5}
