"""Quantising whole transformers models: while they load, in memory, and through save and load."""

import pytest
import torch
from safetensors import safe_open
from torch import nn
from transformers.models.gpt2.configuration_gpt2 import GPT2Config
from transformers.models.gpt2.modeling_gpt2 import GPT2LMHeadModel
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaForCausalLM, LlamaModel
from transformers.models.t5.configuration_t5 import T5Config
from transformers.models.t5.modeling_t5 import T5ForConditionalGeneration

from graft.errors import ModelError
from graft.quant import QuantLinear, quantise_model
from graft.quant.hf import GraftQuantConfig, quantise_pretrained

IDS = torch.arange(2, 14).view(2, 6)


def llama(dtype=torch.float32, **keys):
    torch.manual_seed(0)
    shape = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 50,
    }
    return LlamaForCausalLM(LlamaConfig(**shape | keys)).to(dtype).eval()


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=50, n_positions=32)).eval()


def t5():
    torch.manual_seed(0)
    return T5ForConditionalGeneration(
        T5Config(d_model=64, d_ff=96, d_kv=16, num_layers=1, num_heads=4, vocab_size=50)
    ).eval()


def packed(model):
    return [name for name, module in model.named_modules() if isinstance(module, QuantLinear)]


@pytest.mark.parametrize("build", [llama, gpt2])
@pytest.mark.parametrize("scheme", ["nf4", "fp4", "int8", "int4", "int3"])
def test_quantised_on_load_equals_quantised_in_memory_and_saves_and_loads(build, scheme, tmp_path):
    model = build()
    model.save_pretrained(tmp_path / "plain")
    streamed = type(model).from_pretrained(
        tmp_path / "plain", quantization_config=GraftQuantConfig(scheme), dtype=torch.float32
    )
    quantise_model(model, scheme)
    expected = model(IDS).logits
    assert packed(streamed) == packed(model) != []
    assert torch.equal(streamed(IDS).logits, expected)
    streamed.save_pretrained(tmp_path / "packed")
    again, info = type(model).from_pretrained(tmp_path / "packed", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(again(IDS).logits, expected)
    assert not any(p.requires_grad for p in again.parameters())
    keys = safe_open(tmp_path / "packed" / "model.safetensors", "pt").keys()
    assert {f"{name}.codes" for name in packed(again)} <= set(keys)


def test_conv1d_is_packed_as_out_by_in():
    model = gpt2()
    plain = model.transformer.h[0].attn.c_attn.weight.detach().clone()
    quantise_model(model, "int8")
    layer = model.transformer.h[0].attn.c_attn
    assert layer.weight.shape == plain.T.shape == (192, 64)
    assert (
        layer.weight - plain.T
    ).abs().max() <= plain.abs().max() / 254 * 1.01  # half a step of the largest row


def test_head_embeddings_and_t5_wo_stay_as_they_are():
    for model in (llama(), llama(tie_word_embeddings=True), gpt2()):
        quantise_model(model, "nf4")
        assert isinstance(model.get_output_embeddings(), nn.Linear)
    model = quantise_model(t5(), "nf4")
    assert not any(name.endswith("wo") for name in packed(model))
    assert any(name.endswith("wi") for name in packed(model))
    model(input_ids=IDS, decoder_input_ids=IDS)


def test_a_model_quantised_in_memory_saves_and_loads(tmp_path):
    model = quantise_pretrained(llama(), GraftQuantConfig("nf4", block=32, double=False))
    model.save_pretrained(tmp_path)
    assert torch.equal(LlamaForCausalLM.from_pretrained(tmp_path)(IDS).logits, model(IDS).logits)


def test_a_packed_layer_made_plain_again_survives_save_and_load(tmp_path):
    model = quantise_pretrained(llama(), GraftQuantConfig("nf4"))
    old = model.model.layers[1].mlp.down_proj
    new = nn.Linear(96, 64, bias=False)
    new.weight = nn.Parameter(old.weight, requires_grad=False)
    model.model.layers[1].mlp.down_proj = new
    model.save_pretrained(tmp_path)
    again = LlamaForCausalLM.from_pretrained(tmp_path)
    assert packed(again) == packed(model)
    assert torch.equal(again(IDS).logits, model(IDS).logits)


def test_a_folder_without_its_head_loads_into_the_bare_model_and_back(tmp_path):
    model = quantise_pretrained(llama(), GraftQuantConfig("nf4", skip=["q_proj"]))
    del model.model.layers[0].mlp.gate_proj  # a list of modules that is not the rule's
    model.model.layers[0].mlp.gate_proj = nn.Linear(64, 96, bias=False)
    model.save_pretrained(tmp_path)
    bare = LlamaModel.from_pretrained(tmp_path)
    assert ["model." + name for name in packed(bare)] == packed(model)
    assert torch.equal(bare(IDS).last_hidden_state, model.model(IDS).last_hidden_state)


def test_skipped_names_are_left_alone(tmp_path):
    llama().save_pretrained(tmp_path)
    model = LlamaForCausalLM.from_pretrained(
        tmp_path, quantization_config=GraftQuantConfig("nf4", skip=["q_proj", "layers.0.mlp.up_proj"])
    )
    plain = {name for name, module in model.model.named_modules() if type(module) is nn.Linear}
    assert plain == {"layers.0.self_attn.q_proj", "layers.1.self_attn.q_proj", "layers.0.mlp.up_proj"}


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_weight_that_is_not_finite_is_named(value, tmp_path):
    model = llama()
    with torch.no_grad():
        model.model.layers[1].self_attn.k_proj.weight[3, 4] = value
    model.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"NaN or infinity in model\.layers\.1\.self_attn\.k_proj\.weight"):
        LlamaForCausalLM.from_pretrained(tmp_path, quantization_config=GraftQuantConfig("nf4"))
    with pytest.raises(ModelError, match=r"layers\.1\.self_attn\.k_proj"):
        quantise_model(model, "nf4")


@pytest.mark.parametrize("scheme", ["nf4", "int4"])
def test_weights_in_bf16_are_quantised_from_bf16(scheme, tmp_path):
    model = llama(torch.bfloat16)
    model.save_pretrained(tmp_path / "plain")
    streamed = LlamaForCausalLM.from_pretrained(
        tmp_path / "plain", quantization_config=GraftQuantConfig(scheme), dtype=torch.bfloat16
    )
    streamed.save_pretrained(tmp_path / "packed")
    again = LlamaForCausalLM.from_pretrained(tmp_path / "packed", dtype=torch.bfloat16)
    expected = quantise_model(model, scheme).state_dict()
    for found in (streamed.state_dict(), again.state_dict()):
        assert found.keys() == expected.keys() and all(
            torch.equal(t, expected[name]) for name, t in found.items()
        )
    assert streamed.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("build", [llama, gpt2])
def test_a_dequantised_model_is_an_ordinary_one_on_disk(build, tmp_path):
    model = build()
    keys = {name: tensor.shape for name, tensor in model.state_dict().items()}
    quantise_pretrained(model, GraftQuantConfig("nf4"))
    expected = model(IDS).logits
    model.dequantize(torch.float32)
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == keys
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert not hasattr(again.config, "quantization_config")
    torch.testing.assert_close(again(IDS).logits, expected, atol=1e-5, rtol=1e-5)
