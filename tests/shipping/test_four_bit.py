"""Folders of GPTQ, AWQ, compressed-tensors, bitsandbytes: what they hold and who else reads them."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tiny_folder import write_model
from torch.testing import assert_close
from transformers.models.llama.modeling_llama import LlamaForCausalLM
from transformers.utils.quantization_config import BitsAndBytesConfig, CompressedTensorsConfig

from graft.base.base import Base
from graft.cli.export import certificate_line
from graft.errors import MergeError, UsageError
from graft.formats import int4
from graft.methods.lora import LoRA
from graft.methods.qa_lora import QALoRA
from graft.models.files import tensors
from graft.models.load import load
from graft.quant import QuantLinear, quantise_model
from graft.shipping.export import CERTIFICATE, REPORT, export
from graft.shipping.updates import ideal
from graft.shipping.verify import verify
from models import inputs, randomise, tiny_base, tiny_model

IDS = inputs("llama")["ids"]


def facts(folder, name=CERTIFICATE):
    return json.loads((folder / name).read_text())


def values(folder):
    """Path -> what the file's tensors stand for."""
    found = int4.layers(tensors(folder), facts(folder, "config.json")["quantization_config"])
    return {path: read().values() for path, read in found.items()}


def packed_base(scheme="int4", dtype=torch.float32, family="llama", **how):
    model = tiny_model(family).to(dtype)
    quantise_model(model, scheme, **how)
    return Base(model, name="packed")


def whole_minima(base):
    """Give every group a whole zero point from 1 to 15, so that the formats can hold it."""
    with torch.no_grad():
        for layer in base.model.modules():
            if isinstance(layer, QuantLinear):
                zeros = (-layer.minimum.float() / layer.scale.float()).round().clamp(1, 15)
                layer.scale.copy_(
                    (layer.scale.float() * 1024).round() / 1024
                )  # so that the products are exact
                layer.scale.clamp_(min=1 / 1024)
                layer.minimum.copy_(-layer.scale.float() * zeros)
    return base


@pytest.mark.parametrize("to", int4.FORMATS)
def test_a_base_in_16_bits_is_rounded_to_nearest_in_the_largest_groups_that_fit(to, tmp_path):
    base = tiny_base()
    folder = export(base, tmp_path / "out", to=to)
    config = facts(folder, "config.json")["quantization_config"]
    group = config["config_groups"]["group_0"]["weights"] if to == "compressed-tensors" else config
    assert config["quant_method"] == to and group["group_size"] == 64
    found = values(folder)
    assert len(found) == 14
    for path, value in found.items():
        weight = base.model.get_submodule(path).weight
        groups, apart = (t.unflatten(1, (-1, 64)) for t in (weight, (value - weight).abs()))
        step = (groups.amax(-1).clamp(min=0) - groups.amin(-1).clamp(max=0)) / (14 if to == "gptq" else 15)
        assert (apart <= step[..., None]).all() and (
            apart.mean(-1) / step
        ).mean() < 0.27  # a quarter, if evenly spread
    written = facts(folder)
    assert written["rounded"] is True and "weights differ by" in certificate_line(written)
    assert written["weights"]["survived"] is None and not written["weights"]["missing"]
    expected = torch.cat([(v - base.model.get_submodule(p).weight).abs().flatten() for p, v in found.items()])
    assert written["weights"]["max"] == pytest.approx(float(expected.max()), rel=1e-5)
    again = load(folder, dtype="fp32")
    assert again.quant == "int4" and torch.equal(again.model.lm_head.weight, base.model.lm_head.weight)


@pytest.mark.parametrize("to", int4.FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_groups_with_whole_zero_points_are_held_as_they_are(to, dtype, tmp_path):
    base = whole_minima(packed_base(dtype=dtype))
    folder = export(base, tmp_path / "out", to=to)
    assert facts(folder, "config.json")["dtype"] == str(dtype).removeprefix("torch.")
    rounds = to == "compressed-tensors" and dtype == torch.bfloat16  # where its readers round the scales
    for path, value in values(folder).items():
        layer = base.model.get_submodule(path)
        layer.dtype = torch.float32
        assert_close(value, layer.weight, atol=1e-6, rtol=2**-8 if rounds else 1e-6)


def test_codes_are_chosen_for_what_was_merged_before_it_was_rounded(tmp_path):
    base = packed_base(dtype=torch.bfloat16)
    randomise(base.attach("sql", LoRA(r=4, target_modules="all-linear")), scale=0.2)
    expected = {key.removesuffix(".weight"): tensor for key, _, tensor in ideal(base, ["sql"])}
    before = {name: p for name, p in base.model.named_parameters()}
    folder = export(base, tmp_path / "out", to="awq", adapter="sql", lossy=True)
    assert all(p is before[name] for name, p in base.model.named_parameters())
    assert all(m.dtype == torch.bfloat16 for m in base.model.modules() if isinstance(m, QuantLinear))
    assert facts(folder, "config.json")["quantization_config"]["group_size"] == 32  # the base's
    for path, value in values(folder).items():
        weight = expected[path].float()
        spread = weight.unflatten(1, (-1, 32)).abs().amax(-1, keepdim=True).expand(-1, -1, 32).flatten(1)
        assert ((value - weight).abs() <= spread * 2 / 15 + 1e-3).all()
    written = facts(folder)
    assert 0.95 < written["weights"]["survived"] < 1.05 and written["weights"]["mean"] > 1e-3
    assert "awq has whole zero points: every packed layer was rounded anew" in facts(folder, REPORT)["note"]


def test_what_qa_lora_learnt_is_rounded_and_the_report_says_so(tmp_path):
    base = packed_base()
    randomise(base.attach("sql", QALoRA(r=4, target_modules="all-linear")), scale=0.1)
    exact = facts(export(base, tmp_path / "hf", adapter="sql", into="packed"))
    folder = export(base, tmp_path / "gptq", to="gptq", adapter="sql", lossy=True)
    written, report = facts(folder), facts(folder, REPORT)
    assert written["weights"]["mean"] > 50 * exact["weights"]["mean"] and "rounded" not in exact
    assert "what the minima of the groups would have held exactly" in report["note"]
    assert {check.state for check in verify(folder)} <= {"same", "not checked"}


@pytest.mark.parametrize("to", ["gptq", "compressed-tensors"])
def test_such_a_folder_is_verified_and_is_a_base_that_is_exported_again_as_it_is(to, tmp_path):
    base = load(write_model(tmp_path / "plain"), dtype="fp32")
    folder = export(base, tmp_path / "out", to=to)
    assert {check.state for check in verify(folder)} == {"same"}
    again = export(load(folder, dtype="fp32"), tmp_path / "again", to=to)
    assert {check.state for check in verify(again)} == {"same"}
    first, second = values(folder), values(again)
    for path, value in first.items():  # a float minimum came between: less than a hundredth of a step
        assert_close(second[path], value, atol=1e-6, rtol=2**-11)


def test_a_rounding_that_drowns_the_adapter_is_refused(tmp_path):
    base = packed_base()
    randomise(base.attach("sql", QALoRA(r=4)), scale=1e-3)
    with pytest.raises(MergeError, match=r"moves the logits.*--lossy"):
        export(base, tmp_path / "out", to="gptq", adapter="sql")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("to", int4.FORMATS)
def test_layers_of_other_sizes_stay_as_they_are_and_the_config_names_them(to, tmp_path):
    base = Base(
        tiny_model("llama", intermediate_size=72), name="odd"
    )  # 32 does not divide the input of down_proj
    folder = export(base, tmp_path / "out", to=to)
    config = facts(folder, "config.json")["quantization_config"]
    down = [f"model.layers.{i}.mlp.down_proj" for i in (0, 1)]
    if to == "gptq":
        assert set(config["dynamic"]) == {rf"-:^{name}$".replace(".", r"\.") for name in [*down, "lm_head"]}
    else:
        assert config["ignore" if to == "compressed-tensors" else "modules_to_not_convert"] == [
            *down,
            "lm_head",
        ]
    again = load(folder, dtype="fp32")
    assert sum(isinstance(m, QuantLinear) for m in again.model.modules()) == 12
    assert torch.equal(again.model.get_submodule(down[0]).weight, base.model.get_submodule(down[0]).weight)


def test_a_model_without_such_layers_is_refused(tmp_path):
    with pytest.raises(UsageError, match="awq can hold no linear layer"):
        export(tiny_base("gpt2"), tmp_path / "out", to="awq")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_transformers_with_compressed_tensors_reads_the_same_weights(dtype, tmp_path):
    pytest.importorskip("compressed_tensors")
    base = Base(tiny_model("llama").to(dtype), name="tiny")
    randomise(base.attach("sql", LoRA(r=4, target_modules="all-linear")), scale=0.2)
    folder = export(base, tmp_path / "out", to="compressed-tensors", adapter="sql", lossy=True)
    config = facts(folder, "config.json")["quantization_config"]
    model = LlamaForCausalLM.from_pretrained(
        folder, dtype=dtype, quantization_config=CompressedTensorsConfig(**config, dequantize=True)
    )
    rounding, near = (2**-7, 0.2) if dtype == torch.bfloat16 else (1e-6, 1e-5)
    for path, value in values(folder).items():
        assert_close(model.get_submodule(path).weight, value.to(dtype), atol=0, rtol=rounding)
    ours, plain = load(folder, dtype="fp32"), tiny_model("llama")
    plain.load_state_dict({key: tensor.float() for key, tensor in model.state_dict().items()})
    with torch.no_grad():
        assert_close(model(IDS).logits.float(), plain(IDS).logits, atol=near, rtol=0)
        assert_close(
            ours(IDS).logits, plain(IDS).logits, atol=0.1, rtol=0
        )  # minima rounded to half precision


NF4 = [("nf4", True), ("nf4", False), ("fp4", True), ("fp4", False)]


@pytest.mark.parametrize(("name", "double"), NF4)
def test_bytes_are_those_that_bitsandbytes_stores(name, double, tmp_path):
    pytest.importorskip("bitsandbytes")
    tiny_model("llama").save_pretrained(tmp_path / "plain")
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=name, bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=torch.float32,
    )  # fmt: skip
    theirs = LlamaForCausalLM.from_pretrained(
        tmp_path / "plain", quantization_config=config, dtype=torch.float32, device_map="cpu"
    )
    theirs.save_pretrained(tmp_path / "theirs")
    folder = export(packed_base(name, double=double), tmp_path / "ours", to="bnb")
    expected, found = (load_file(f / "model.safetensors") for f in (tmp_path / "theirs", folder))
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        if "quant_state" in key:
            states = [json.loads(bytes(t.tolist())) for t in (found[key], tensor)]
            assert states[0] == states[1]
        assert found[key].dtype == tensor.dtype and torch.equal(found[key], tensor), key
    assert facts(folder)["weights"]["max"] == facts(folder)["logits"]["max"] == 0
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, device_map="cpu").train()
    with torch.no_grad():
        assert_close(model(IDS).logits, packed_base(name, double=double)(IDS).logits, atol=1e-5, rtol=1e-5)


def test_a_merge_into_bitsandbytes_is_packed_again(tmp_path):
    base = packed_base("nf4", family="gpt2")
    randomise(base.attach("sql", LoRA(r=4, target_modules=["c_attn"])))
    ids = inputs("gpt2")["ids"]
    folder = export(base, tmp_path / "out", to="bnb", adapter="sql", lossy=True)
    written = facts(folder)
    assert written["into"] == "packed" and 0.5 < written["weights"]["survived"] < 1.1
    base.merge("sql", repack=True)
    assert torch.equal(load(folder, dtype="fp32")(ids).logits, base(ids).logits)


def test_what_bitsandbytes_cannot_hold_is_refused(tmp_path):
    for base, how, what in (
        (tiny_base(), {}, r"\(none\) as bnb"),
        (packed_base("int4"), {}, r"\(int4\) as bnb"),
        (packed_base("nf4"), {"into": "dequantised"}, "into='dequantised' as bnb"),
        (packed_base("nf4", block=16), {}, "rows of 64 weights in blocks of 16"),
        (packed_base("nf4", block=128), {}, "rows of 64 weights in blocks of 128"),
    ):
        with pytest.raises(UsageError, match=what):
            export(base, tmp_path / "out", to="bnb", **how)
        assert not (tmp_path / "out").exists()
