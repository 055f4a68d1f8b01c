"""Checkpoints that transformers and bitsandbytes wrote, read without bitsandbytes."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.models.gpt2.configuration_gpt2 import GPT2Config
from transformers.models.gpt2.modeling_gpt2 import GPT2LMHeadModel
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaForCausalLM
from transformers.utils.quantization_config import BitsAndBytesConfig

from graft.errors import ModelError, UsageError
from graft.formats import bnb
from graft.models.load import load
from graft.quant import QuantLinear

pytest.importorskip("bitsandbytes")
IDS = torch.arange(2, 14).view(2, 6)


def llama(folder, intermediate_size=128):
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 50}
    LlamaForCausalLM(LlamaConfig(intermediate_size=intermediate_size, **shape)).save_pretrained(folder)
    return folder


def theirs(cls, source, target, dtype=torch.float32, **keys):
    """Quantised by transformers and bitsandbytes, saved to target.

    In training mode (no dropout in these models), because in evaluation bitsandbytes takes a CPU kernel that
    cuts absmax to bf16 and repacks the weights in place.
    """
    config = BitsAndBytesConfig(**keys)
    model = cls.from_pretrained(source, quantization_config=config, dtype=dtype, device_map="cpu").train()
    model.save_pretrained(target)
    return model


def four_bits(name="nf4", double=True, dtype=torch.float32):
    return {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": name,
        "bnb_4bit_use_double_quant": double,
        "bnb_4bit_compute_dtype": dtype,
    }


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("name", ["nf4", "fp4"])
def test_outputs_are_those_of_bitsandbytes(name, double, tmp_path):
    model = theirs(LlamaForCausalLM, llama(tmp_path / "plain"), tmp_path / "bnb", **four_bits(name, double))
    base = load(tmp_path / "bnb", dtype="fp32")
    with torch.no_grad():
        torch.testing.assert_close(base.model(IDS).logits, model(IDS).logits, atol=1e-6, rtol=1e-5)
    layer = base.model.model.layers[0].mlp.up_proj
    assert isinstance(layer, QuantLinear) and layer.scheme.name == name and layer.scheme.double == double
    assert torch.equal(layer.codes.flatten(), model.model.layers[0].mlp.up_proj.weight.flatten())
    assert base.count() == sum(p.numel() for p in LlamaForCausalLM(base.model.config).parameters())


def test_in_bf16_outputs_are_equal_too(tmp_path):
    keys = four_bits(dtype=torch.bfloat16)
    model = theirs(
        LlamaForCausalLM, llama(tmp_path / "plain"), tmp_path / "bnb", dtype=torch.bfloat16, **keys
    )
    base = load(tmp_path / "bnb", dtype="bf16")
    names = [n for n, m in base.model.named_modules() if isinstance(m, QuantLinear)]
    assert len(names) == 14
    with torch.no_grad():  # the product may run in another order of additions: one unit of bf16
        torch.testing.assert_close(base.model(IDS).logits, model(IDS).logits, atol=1e-2, rtol=1e-2)


def test_conv1d_of_gpt2_loads(tmp_path):
    torch.manual_seed(0)
    shape = {"n_embd": 64, "n_layer": 1, "n_head": 4, "vocab_size": 50, "n_positions": 32}
    config = GPT2Config(**shape, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "plain")
    model = theirs(GPT2LMHeadModel, tmp_path / "plain", tmp_path / "bnb", **four_bits())
    with torch.no_grad():
        torch.testing.assert_close(
            load(tmp_path / "bnb", dtype="fp32").model(IDS).logits, model(IDS).logits, atol=1e-6, rtol=1e-5
        )


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("width", [96, 68])
def test_blocks_that_cross_rows_become_shorter_blocks_with_the_same_values(width, double, tmp_path):
    theirs(LlamaForCausalLM, llama(tmp_path / "plain", width), tmp_path / "bnb", **four_bits(double=double))
    base = load(tmp_path / "bnb", dtype="fp32")
    layer, stored = (
        base.model.model.layers[0].mlp.down_proj,
        load_file(tmp_path / "bnb" / "model.safetensors"),
    )
    assert layer.scheme.block == {96: 32, 68: 4}[width]
    torch.testing.assert_close(
        layer.weight, by_definition(stored, "model.layers.0.mlp.down_proj", 64, width), rtol=1e-6, atol=0
    )
    base.model.save_pretrained(tmp_path / "ours")  # every layer keeps its own block
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "ours", dtype="fp32").model(IDS).logits, base.model(IDS).logits)


def by_definition(stored, name, rows, columns):
    """Return the values by the published format; bitsandbytes 0.50's CPU kernel misreads rows of 96."""
    part = lambda suffix: stored.get(f"{name}.weight.{suffix}")
    absmax = part("absmax").float()
    if part("nested_absmax") is not None:
        facts = json.loads(bytes(part("quant_state.bitsandbytes__nf4").tolist()))
        absmax = (
            part("nested_quant_map")[part("absmax").long()]
            * part("nested_absmax").repeat_interleave(256)[: len(absmax)]
        )
        absmax += facts["nested_offset"]
    bytes_ = stored[f"{name}.weight"].flatten().long()
    levels = part("quant_map")[torch.stack([bytes_ >> 4, bytes_ & 15], dim=1).flatten()]
    return (levels * absmax.repeat_interleave(64)[: len(levels)]).view(rows, columns)


def test_rows_without_a_common_divisor_are_refused(tmp_path):
    theirs(LlamaForCausalLM, llama(tmp_path / "plain", 70), tmp_path / "bnb", **four_bits())
    with pytest.raises(ModelError, match=r"down_proj: rows of 70 weights in blocks of 64 that cross rows"):
        load(tmp_path / "bnb")


def test_eight_bit_weights_are_code_times_row_maximum(tmp_path):
    source = llama(tmp_path / "plain")
    theirs(LlamaForCausalLM, source, tmp_path / "bnb", dtype=torch.float16, load_in_8bit=True)
    layer = load(tmp_path / "bnb", dtype="fp32").model.model.layers[1].self_attn.q_proj
    stored = load_file(tmp_path / "bnb" / "model.safetensors")
    name = "model.layers.1.self_attn.q_proj"
    expected = stored[f"{name}.weight"].float() * stored[f"{name}.SCB"].float()[:, None] / 127
    torch.testing.assert_close(layer.weight, expected)
    plain = load_file(source / "model.safetensors")[f"{name}.weight"]
    assert (layer.weight - plain).abs().max() < plain.abs().max() / 200


def test_bytes_stored_as_another_type_are_the_same_bytes(tmp_path):
    source = llama(tmp_path / "plain")
    theirs(LlamaForCausalLM, source, tmp_path / "a", **four_bits())
    theirs(LlamaForCausalLM, source, tmp_path / "b", **four_bits(), bnb_4bit_quant_storage=torch.bfloat16)
    ours = [bnb.convert(load_file(tmp_path / f / "model.safetensors"))[0] for f in "ab"]
    assert ours[0].keys() == ours[1].keys()
    assert all(torch.equal(ours[0][key], ours[1][key]) for key in ours[0])


def test_foreign_levels_are_refused(tmp_path):
    folder = tmp_path / "bnb"
    theirs(LlamaForCausalLM, llama(tmp_path / "plain"), folder, **four_bits())
    state = load_file(folder / "model.safetensors")
    state["model.layers.0.mlp.up_proj.weight.quant_map"][3] += 0.1
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"up_proj: levels of 'nf4' that are not bitsandbytes' own"):
        load(folder)


def test_quant_for_a_quantised_folder_is_refused(tmp_path):
    folder = llama(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    for method in ("bitsandbytes", "graft"):
        config["quantization_config"] = {"quant_method": method}
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(UsageError, match=f"quantised already \\({method}\\)"):
            load(folder, quant="nf4")
