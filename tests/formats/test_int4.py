"""GPTQ, AWQ, compressed-tensors: layouts by hand, the package of that name, folders as bases to train."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch.nn import functional as F
from torch.testing import assert_close
from transformers.models.llama.modeling_llama import LlamaForCausalLM

from graft.errors import GraftError, ModelError
from graft.formats import awq, compressed_tensors, gptq, int4
from graft.formats.whole import Whole, pack_words, rounded, unpack_words
from graft.methods.qa_lora import QALoRA
from graft.models.load import load
from graft.quant import QuantLinear, Scheme
from models import inputs, randomise, tiny_model

CONFIGS = {name: form.settings(8, []) for name, form in int4.FORMATS.items()}
CHANNEL = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "channel"}


def drawn(rows, columns, group, seed=0, lowest=1):
    """A random layer; scales are numbers of half precision."""
    make = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 16, (rows, columns), generator=make, dtype=torch.uint8)
    zeros = torch.randint(lowest, 16, (rows, -(-columns // group)), generator=make, dtype=torch.uint8)
    return Whole(codes, zeros, torch.rand(zeros.shape, generator=make).half() * 0.05 + 0.01, group)


def nibble(words, row, column, place):
    return int(words[row, column]) >> 4 * place & 15


def test_gptq_by_hand():
    layer = drawn(16, 24, 8)
    parts = gptq.pack(layer)
    assert {name: tuple(t.shape) for name, t in parts.items()} == {
        "qweight": (3, 16), "qzeros": (3, 2), "scales": (3, 16), "g_idx": (24,),
    }  # fmt: skip
    for row in range(16):
        for column in range(24):
            assert nibble(parts["qweight"], column // 8, row, column % 8) == layer.codes[row, column]
        for group in range(3):
            assert nibble(parts["qzeros"], group, row // 8, row % 8) == layer.zeros[row, group] - 1
            assert parts["scales"][group, row] == layer.scale[row, group]
    assert parts["g_idx"].tolist() == [i // 8 for i in range(24)]
    codes = torch.zeros(8, 8, dtype=torch.uint8)
    codes[0] = torch.arange(1, 9)  # the first output's inputs, from the lowest bits up
    tiny = gptq.pack(Whole(codes, torch.full((8, 1), 8, dtype=torch.uint8), torch.ones(8, 1).half(), 8))
    assert f"{tiny['qweight'][0, 0].item() & 0xFFFFFFFF:08x}" == "87654321"
    assert tiny["qzeros"].item() == 0x77777777


def test_awq_by_hand():
    layer = drawn(16, 24, 8, lowest=0)
    parts = awq.pack(layer)
    assert {name: tuple(t.shape) for name, t in parts.items()} == {
        "qweight": (24, 2), "qzeros": (3, 2), "scales": (3, 16),
    }  # fmt: skip
    for place, row in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
        for word in range(2):
            for column in range(24):
                assert nibble(parts["qweight"], column, word, place) == layer.codes[8 * word + row, column]
            for group in range(3):
                assert nibble(parts["qzeros"], group, word, place) == layer.zeros[8 * word + row, group]
    assert torch.equal(parts["scales"], layer.scale.T)


def test_compressed_tensors_by_hand_and_as_the_package_packs():
    theirs = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    layer = drawn(12, 20, 10, lowest=0)  # neither side fills its last word
    parts = compressed_tensors.pack(layer)
    assert {name: tuple(t.shape) for name, t in parts.items()} == {
        "weight_packed": (12, 3), "weight_zero_point": (2, 2), "weight_scale": (12, 2), "weight_shape": (2,),
    }  # fmt: skip
    for row in range(12):
        assert all(
            nibble(parts["weight_packed"], row, i // 8, i % 8) == layer.codes[row, i] for i in range(20)
        )
        assert all(
            nibble(parts["weight_zero_point"], row // 8, g, row % 8) == layer.zeros[row, g] for g in range(2)
        )
    signed = lambda tensor: (tensor.int() - 8).to(torch.int8)
    assert torch.equal(parts["weight_packed"], theirs.pack_to_int32(signed(layer.codes), 4))
    assert torch.equal(parts["weight_zero_point"], theirs.pack_to_int32(signed(layer.zeros), 4, packed_dim=0))
    assert parts["weight_shape"].tolist() == [12, 20]


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(int4.FORMATS)),
    rows=st.integers(1, 5),
    groups=st.integers(1, 4),
    group=st.sampled_from([8, 16, 24]),
    seed=st.integers(0, 99),
)
def test_what_is_packed_is_unpacked(name, rows, groups, group, seed):
    form = int4.FORMATS[name]
    layer = drawn(8 * rows, group * groups, group, seed, form.LOWEST)
    again = form.unpack("x", form.pack(layer), form.settings(group, []))
    assert again.group == group and torch.equal(again.scale, layer.scale)
    assert torch.equal(again.codes, layer.codes) and torch.equal(again.zeros, layer.zeros)


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 5), columns=st.integers(1, 40), seed=st.integers(0, 99))
def test_words_hold_rows_of_any_length(rows, columns, seed):
    codes = torch.randint(
        0, 16, (rows, columns), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )
    words = pack_words(codes)
    assert words.dtype == torch.int32 and words.shape == (rows, -(-columns // 8))
    assert torch.equal(unpack_words(words)[:, :columns], codes)


@settings(max_examples=60, deadline=None)
@given(lowest=st.integers(0, 1), seed=st.integers(0, 99), shift=st.floats(-3, 3))
def test_rounding_is_off_by_half_a_step_where_the_range_holds_zero(lowest, seed, shift):
    weight = torch.randn(6, 32, generator=torch.Generator().manual_seed(seed)) + shift
    found = rounded(weight, 8, lowest, torch.float32)
    assert int(found.zeros.min()) >= lowest and int(found.codes.max()) <= 15
    # an end may lie another half step outside, where the zero point was rounded away from it
    steps = (found.values() - weight).abs().unflatten(1, (-1, 8)) / found.scale[..., None]
    assert steps.max() <= 1 + 1e-4 and steps.mean() < 0.4


def test_a_scale_is_kept_where_it_leaves_less_error_and_else_chosen_anew():
    weight = torch.tensor([[0.0, 0.1, 0.2, 0.5], [2.0, 2.1, 2.2, 2.5]])
    kept = (torch.full((2, 1), 0.1), weight[:, :1].clone())
    found = rounded(weight, 4, 0, torch.float32, kept)
    assert_close(found.values()[0], weight[0])  # minimum 0 is the zero point 0
    assert found.codes[0].tolist() == [0, 1, 2, 5] and found.zeros.flatten().tolist() == [0, 0]
    assert found.scale[1].item() == pytest.approx(2.5 / 15)  # no zero point reaches 2 in steps of 0.1
    flat = rounded(torch.tensor([[0.0] * 4, [-3.0] * 4]), 4, 0, torch.float16)
    assert_close(flat.values(), torch.tensor([[0.0] * 4, [-3.0] * 4]), atol=1e-3, rtol=0)


def test_our_minimum_is_exact_for_powers_of_two_and_near_otherwise():
    layer = drawn(16, 64, 8)
    ours = QuantLinear(64, 16, Scheme("int4", 8))
    ours.fill(layer.tensors())
    apart = (ours.weight - layer.values()).abs().unflatten(1, (-1, 8)).amax(-1)
    assert (apart <= layer.scale.float() * layer.zeros / 2048 + 1e-6).all() and apart.max() > 0
    power = torch.isin(layer.zeros, torch.tensor([1, 2, 4, 8], dtype=torch.uint8))
    assert apart[power].max() < 1e-7


def folder_of(tmp_path, name, config=None, group=32, zeros=None, change=None):
    """Write a tiny Llama with random layers of the format; return the folder and a plain model of its values.

    change: what is done to the tensors of one layer before they are saved.
    """
    form, plain = int4.FORMATS[name], tiny_model("llama")
    state = plain.state_dict()
    for seed, (path, module) in enumerate(plain.named_modules()):
        if isinstance(module, torch.nn.Linear) and path != "lm_head":
            layer = drawn(module.out_features, module.in_features, group, seed, form.LOWEST)
            layer = layer if zeros is None else replace(layer, zeros=torch.full_like(layer.zeros, zeros))
            parts = form.pack(layer)
            if change is not None:
                change(parts)
            del state[f"{path}.weight"]
            state |= {f"{path}.{part}": tensor for part, tensor in parts.items()}
            module.weight.data = layer.values()
    plain.config.save_pretrained(tmp_path)
    save_file({k: t.contiguous() for k, t in state.items()}, tmp_path / "model.safetensors", {"format": "pt"})
    facts = json.loads((tmp_path / "config.json").read_text())
    facts |= {
        "architectures": ["LlamaForCausalLM"],
        "quantization_config": config or form.settings(group, ["lm_head"]),
    }
    (tmp_path / "config.json").write_text(json.dumps(facts))
    return tmp_path, plain.eval()


@pytest.mark.parametrize("name", int4.FORMATS)
def test_a_folder_loads_as_an_int4_base_with_its_values(name, tmp_path):
    folder, plain = folder_of(tmp_path, name)
    base = load(folder, dtype="fp32")
    layers = [m for m in base.model.modules() if isinstance(m, QuantLinear)]
    assert len(layers) == 14 and {(m.scheme.name, m.scheme.block) for m in layers} == {("int4", 32)}
    ids = inputs("llama")["ids"]
    with torch.no_grad():
        assert_close(
            base(ids).logits, plain(ids).logits, atol=5e-2, rtol=0
        )  # of about 10; the minima were rounded
    path = "model.layers.1.mlp.down_proj"
    apart = (base.model.get_submodule(path).weight - plain.get_submodule(path).weight).abs().max()
    assert apart < 0.06 * 15 / 2048


def test_the_second_gptq_format_and_the_older_file_say_the_same(tmp_path):
    def as_they_are(parts):
        parts["qzeros"] += 0x11111111

    one, _ = folder_of(tmp_path / "one", "gptq")
    newer = CONFIGS["gptq"] | {"checkpoint_format": "gptq_v2", "group_size": 32}
    two, _ = folder_of(tmp_path / "two", "gptq", newer, change=as_they_are)
    facts = json.loads((one / "config.json").read_text())
    older = facts.pop("quantization_config")
    del older["quant_method"], older["checkpoint_format"]
    (one / "config.json").write_text(json.dumps(facts))
    (one / "quantize_config.json").write_text(json.dumps(older))
    first, second = (load(folder).model.state_dict() for folder in (one, two))
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_a_zero_point_of_zero_is_read_as_gptqmodel_writes_it():
    zeros = torch.tensor([[0, 8, 0, 0, 15, 1, 2, 3]], dtype=torch.uint8).T
    layer = Whole(torch.zeros(8, 8, dtype=torch.uint8), zeros, torch.ones(8, 1).half(), 8)
    parts = gptq.pack(Whole(layer.codes, layer.zeros + 1, layer.scale, 8))  # zeros as they are
    parts["qzeros"] -= 0x11111111  # one from the whole word, with borrows
    assert torch.equal(gptq.unpack("x", parts, CONFIGS["gptq"]).zeros, zeros)


@pytest.mark.parametrize("name", ["gptq", "awq"])
def test_one_group_per_row(name, tmp_path):
    config = int4.FORMATS[name].settings(-1, [])
    folder, plain = folder_of(tmp_path, name, config, group=128)
    base = load(folder, dtype="fp32")
    ids = inputs("llama")["ids"]
    assert {m.scheme.block for m in base.model.modules() if isinstance(m, QuantLinear)} == {64, 128}
    with torch.no_grad():
        assert_close(base(ids).logits, plain(ids).logits, atol=5e-2, rtol=0)


@pytest.mark.parametrize("strategy", ["group", "channel"])
def test_transformers_with_compressed_tensors_reads_symmetric_folders_as_we_do(strategy, tmp_path):
    pytest.importorskip("compressed_tensors")
    config = compressed_tensors.settings(32, ["lm_head"])
    weights = config["config_groups"]["group_0"]["weights"]
    weights |= {"symmetric": True} if strategy == "group" else {**CHANNEL, "group_size": None}

    def symmetric(parts):
        del parts["weight_zero_point"]

    folder, plain = folder_of(
        tmp_path,
        "compressed-tensors",
        config,
        group=32 if strategy == "group" else 128,
        zeros=8,
        change=symmetric,
    )
    ids = inputs("llama")["ids"]
    theirs = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        expected = theirs(ids).logits
        assert_close(load(folder, dtype="fp32")(ids).logits, expected, atol=1e-5, rtol=1e-5)
        assert_close(plain(ids).logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", int4.FORMATS)
def test_qa_lora_trains_on_such_a_base_and_merges_into_its_minima(name, tmp_path):
    base = load(folder_of(tmp_path, name)[0], dtype="fp32")
    adapter = base.attach("sql", QALoRA(r=4, lora_alpha=4, target_modules="all-linear"))
    randomise(adapter, scale=0.02)
    ids = inputs("llama")["ids"]
    optimizer = torch.optim.Adam(adapter.parameters(), lr=3e-3)
    losses = []
    for _ in range(20):
        logits = base(ids, adapters=["sql"] * len(ids)).logits
        losses.append(F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]
    with torch.no_grad():
        adapted, bare = base(ids, adapters=["sql"] * len(ids)).logits, base(ids).logits
        base.merge("sql")
        assert len(base.merged[0].shifted) == 14 and not base.merged[0].dequantised
        # only the minima were rounded, to half precision
        assert (base(ids).logits - adapted).abs().max() < 0.02 * (adapted - bare).abs().max()


def reordered(parts):
    parts["g_idx"] = parts["g_idx"].flip(0)


def wrong_size(parts):
    parts["scales"] = parts["scales"][:, :-8]


def no_order(parts):
    del parts["g_idx"]


def nothing(parts):
    pass


@pytest.mark.parametrize(
    ("name", "changes", "change", "what"),
    [
        ("gptq", {"bits": 8}, nothing, "GPTQ in 8 bits"),
        ("gptq", {"checkpoint_format": "marlin"}, nothing, "format 'marlin'"),
        ("gptq", {"desc_act": True}, reordered, "sorted into groups by their activations"),
        ("gptq", {"desc_act": True}, no_order, "fit together"),
        ("gptq", {"group_size": 64}, nothing, "sorted into groups"),
        ("gptq", {}, wrong_size, r"down_proj: qweight .* fit together"),
        ("awq", {"version": "gemv"}, nothing, "version 'gemv'"),
        ("awq", {"zero_point": False}, nothing, "zero_point False"),
        ("awq", {"group_size": 64}, nothing, "fit together"),
        ("compressed-tensors", {"format": "int-quantized"}, nothing, "format int-quantized"),
        ("compressed-tensors", {"config_groups": {}}, nothing, "no config_groups"),
        ("compressed-tensors", {"quant_method": "quark"}, nothing, "quantised with quark"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_with_the_reason(name, changes, change, what, tmp_path):
    config = int4.FORMATS[name].settings(32, []) | changes
    folder, _ = folder_of(tmp_path, name, config, change=change)
    with pytest.raises(GraftError, match=what):
        load(folder)


@pytest.mark.parametrize(
    ("weights", "more", "what"),
    [
        ({"num_bits": 8}, {}, "num_bits 8"),
        ({"strategy": "tensor"}, {}, "strategy tensor"),
        ({"type": "float"}, {}, "type float"),
        ({}, {"input_activations": {"num_bits": 8}}, "quantised activations"),
        ({"group_size": 20}, {}, "4 scales for 128 inputs"),
    ],
)
def test_other_schemes_of_compressed_tensors_are_refused(weights, more, what, tmp_path):
    config = compressed_tensors.settings(32, [])
    scheme = config["config_groups"]["group_0"]
    scheme["weights"] |= weights
    scheme |= more
    with pytest.raises(ModelError, match=what):
        load(folder_of(tmp_path, "compressed-tensors", config)[0])
