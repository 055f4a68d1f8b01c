"""QA-LoRA: arithmetic by hand, PEFT's own layer, and the merge into the minima of the groups."""

import copy
import json

import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.tuners.lora.gptq import GPTQLoraLinear
from safetensors.torch import load_file, save_file
from torch import nn
from torch.testing import assert_close
from transformers.models.llama.modeling_llama import LlamaForCausalLM

from graft.base.adapter import Adapter
from graft.base.base import Base
from graft.base.merging import Merges
from graft.combine.blend import blend
from graft.core.site import Site
from graft.errors import AdapterError, SiteError, UsageError
from graft.methods.lora import LoRA
from graft.methods.qa_lora import QALoRA
from graft.models.load import load
from graft.quant import QuantLinear, Scheme, quantise_model
from graft.quant.hf import GraftQuantConfig, quantise_pretrained
from graft.shipping.export import export, minima_hold
from models import inputs, randomise, tiny_base, tiny_model


def insert_on(layer, **settings):
    """The insert for one layer, with random tensors."""
    root = nn.ModuleDict({"layer": layer})
    insert = QALoRA(target_modules=("layer",), **settings).build(Site("layer", "linear", root))
    with torch.no_grad():
        for p in insert.parameters():
            p.copy_(torch.randn_like(p))
    return insert


def test_the_update_is_that_of_a_sum_over_groups_by_hand():
    layer = nn.Linear(4, 1, bias=False)
    insert = insert_on(layer, r=2, lora_alpha=6, qalora_group_size=2)
    with torch.no_grad():
        insert.A.copy_(torch.tensor([[1.0, 2.0], [0.0, -1.0]]))
        insert.B.copy_(torch.tensor([[1.0, 10.0]]))
    x, y = torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([[100.0]])
    # sums 3 and 7; A: 17 and -7; B: 17 - 70; s = 3
    assert insert(x, y).item() == 100 + 3 * (17 - 70)
    assert insert.merge(torch.zeros(1, 4), None)[0].tolist() == [[3.0, 3.0, -24.0, -24.0]]
    assert insert.merge_groups(torch.zeros(1, 2), None, 2)[0].tolist() == [[3.0, -24.0]]
    assert insert.merge_groups(torch.zeros(1, 4), None, 1)[0].tolist() == [[3.0, 3.0, -24.0, -24.0]]
    assert insert.merge_groups(torch.zeros(1, 1), None, 4) is None


shapes = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["int2", "int3", "int4", "int8g"]),
        "block": st.sampled_from([2, 8, 32, 64, 128]),
        "repeat": st.sampled_from([1, 1, 2, 3]),  # blocks of the base in a group of the adapter
        "groups": st.integers(1, 5),
        "out_features": st.integers(1, 20),
        "r": st.integers(1, 9),
        "seed": st.integers(0, 2**31),
    }
)


def merged(name, block, repeat, groups, out_features, r, seed, exact):
    """Weights with the insert beside them, those of the merged layer, the layer, the insert.

    exact: constants in double precision, as no file stores them.
    """
    torch.manual_seed(seed)
    w = torch.randn(out_features, block * repeat * groups, dtype=torch.float64)
    layer = QuantLinear.pack(w, Scheme(name, block))
    if exact:
        layer.fill({"scale": layer.scale.double(), "minimum": layer.minimum.double()})
    insert = insert_on(layer, r=r, qalora_group_size=block * repeat).double()
    root, eye = nn.ModuleDict({"layer": layer}), torch.eye(w.shape[1], dtype=torch.float64)
    beside = insert(eye, layer(eye)).T.detach()
    codes = layer.codes.clone()
    done = Merges(root).add(Adapter("x", [QALoRA()], [[(Site("layer", "linear", root), insert)]], dict))
    assert done.shifted == ["layer"] and not done.dequantised and torch.equal(layer.codes, codes)
    return beside, layer(eye).T, layer, insert


@settings(max_examples=60, deadline=None)
@given(shapes)
def test_a_merge_is_exact_for_float_minima(shape):
    beside, after, _, _ = merged(**shape, exact=True)
    assert_close(after, beside, atol=1e-12, rtol=1e-12)


@settings(max_examples=60, deadline=None)
@given(shapes)
def test_a_merge_is_exact_but_for_the_rounding_of_one_constant_as_stored(shape):
    beside, after, layer, insert = merged(**shape, exact=False)
    assert layer.minimum.dtype == torch.float16
    half = 2.0**-11 * layer.minimum.double().abs() + 2.0**-25  # half a unit in the last place
    single = (
        2.0**-24 * (insert.A.shape[0] + 4) * (insert.scale * (insert.B.abs() @ insert.A.abs()))
    )  # fp32 of B A
    repeat = insert.group // layer.scheme.block
    bound = (half * 1.001 + single.detach().repeat_interleave(repeat, 1)).repeat_interleave(
        layer.scheme.block, 1
    )
    assert bool(((after - beside).abs() <= bound).all())


@pytest.mark.parametrize("group", [32, 64])
def test_a_merged_base_stays_packed_saves_loads_and_comes_apart_again(group, tmp_path):
    model = quantise_pretrained(tiny_model("llama"), GraftQuantConfig("int4"))
    base, batch = Base(model), inputs("llama")
    before = base(**batch).logits
    randomise(base.attach("x", QALoRA(r=4, qalora_group_size=group)))
    with base.using("x"):
        attached = base(**batch).logits
    done = base.merge("x")
    packed = [n for n, m in model.named_modules() if isinstance(m, QuantLinear)]
    assert done.shifted == packed and not done.dequantised
    after = base(**batch).logits
    assert_close(after, attached, atol=0.05, rtol=0.05)  # 14 layers of rounded minima
    assert (attached - before).abs().max() > 20 * (after - attached).abs().max()
    model.save_pretrained(tmp_path)
    opened = LlamaForCausalLM.from_pretrained(tmp_path)
    assert_close(opened(batch["ids"]).logits, after, atol=1e-5, rtol=1e-5)
    base.unmerge("x")
    assert torch.equal(base(**batch).logits, before)


def test_an_adapter_is_exported_into_the_packed_base(tmp_path):
    base, batch = Base(quantise_model(tiny_model("llama"), "int4"), name="tiny"), inputs("llama")
    randomise(base.attach("x", QALoRA(r=4)))
    base.attach("other", LoRA(r=4))
    assert minima_hold(base, ["x"]) and not minima_hold(base, ["x", "other"])
    export(base, tmp_path / "packed", adapter="x", into="packed")
    facts = json.loads((tmp_path / "packed" / "merge_report.json").read_text())
    assert facts["dequantised_layers"] == 0 and facts["adapters"][0]["kept"] > 0.99 and not base.merged
    base.merge("x")
    found = load(tmp_path / "packed", dtype="fp32")
    assert torch.equal(found(**batch).logits, base(**batch).logits)
    assert all(m.scheme == Scheme("int4") for m in found.model.modules() if isinstance(m, QuantLinear))
    with pytest.raises(UsageError, match="a quantised base"):
        export(Base(tiny_model("llama"), name="plain"), tmp_path / "out", into="packed")


def test_groups_narrower_than_the_bases_and_other_formats_become_16_bit_and_a_notice_says_so():
    for quant, block, wide in (("int4", 64, True), ("nf4", 64, True), ("int4", 32, False)):
        base = Base(quantise_model(tiny_model("llama"), quant, block=block))
        adapter = base.attach("x", QALoRA(r=4, qalora_group_size=32))
        assert ("16-bit" in str(adapter.notices())) == wide
        assert bool(base.merge("x").dequantised) == wide


def test_the_group_is_the_bases_unless_it_is_given():
    for block, group, expected in ((64, None, 64), (32, None, 32), (32, 64, 64)):
        base = Base(quantise_model(tiny_model("llama"), "int4", block=block))
        adapter = base.attach("x", QALoRA(r=4, qalora_group_size=group))
        assert {insert.group for _, insert in adapter.inserts} == {expected}
    assert {insert.group for _, insert in tiny_base().attach("x", QALoRA(r=4)).inserts} == {32}


def test_all_linear_leaves_out_what_the_group_does_not_divide_and_says_which():
    base = Base(quantise_model(tiny_model("llama", intermediate_size=80), "int4"))
    adapter = base.attach("x", QALoRA(r=4))
    assert {s.name.rpartition(".")[2] for s, _ in adapter.inserts} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj"
    }  # fmt: skip
    assert adapter.notices() == [
        "left out, as the group does not divide their input: model.layers.*.mlp.down_proj"
    ]
    with pytest.raises(SiteError, match=r"mlp\.down_proj has 80 features.*multiple of the group of 32"):
        base.attach("y", QALoRA(target_modules=("q_proj", "down_proj")))
    with pytest.raises(SiteError, match="multiple of the group of 48"):
        base.attach("y", QALoRA(qalora_group_size=48))


def theirs(model, folder, group, targets=("q_proj", "down_proj"), pool=None):
    """PEFT's layers in a copy of the model, and a file of them. PEFT itself puts them on GPTQ layers only."""
    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=list(targets), use_qalora=True, qalora_group_size=group
    )
    tuned, tensors = copy.deepcopy(model), {}
    generator = torch.Generator().manual_seed(0)
    for name, module in list(tuned.named_modules()):
        if name.endswith(targets):
            layer = GPTQLoraLinear(module, "default", config=config, r=4, lora_alpha=6)
            for part in ("lora_A", "lora_B"):
                weight = getattr(layer, part)["default"].weight
                with torch.no_grad():
                    weight.copy_(torch.randn(weight.shape, generator=generator) * 0.2)
                tensors[f"base_model.model.{name}.{part}.weight"] = weight.detach()
            tuned.set_submodule(name, layer)
    config.save_pretrained(folder)
    save_file(tensors, folder / "adapter_model.safetensors")
    return tuned


def edit_config(folder, **changes):
    facts = json.loads((folder / "adapter_config.json").read_text()) | changes
    (folder / "adapter_config.json").write_text(json.dumps(facts))


@pytest.mark.parametrize("group", [16, 32])
def test_a_file_of_peft_answers_here_as_there_and_is_a_sum_from_then_on(group, tmp_path):
    model, batch = quantise_model(tiny_model("llama"), "int4", block=16), inputs("llama")
    tuned = theirs(model, tmp_path, group)
    base = Base(model)
    adapter = base.load_adapter(tmp_path, "x")
    assert isinstance(adapter.methods[0], QALoRA) and adapter.methods[0].qalora_group_size == group
    with base.using("x"):
        ours = base(**batch).logits
    assert_close(ours, tuned(batch["ids"]).logits, atol=1e-5, rtol=1e-5)
    assert (ours - base(**batch).logits).abs().max() > 1e-2
    adapter.save(tmp_path / "ours")
    facts = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    assert (facts["qalora_pool"], facts["qalora_group_size"], facts["qalora_bits"]) == ("sum", group, 4)
    base.load_adapter(tmp_path / "ours", "y")
    with base.using("y"):
        assert torch.equal(base(**batch).logits, ours)


@pytest.mark.parametrize(("pool", "factor"), [("sum", 1), ("mean", 1 / 16), ("mean_x_groups", None)])
def test_every_convention_is_converted_to_the_sum(pool, factor, tmp_path):
    model = tiny_model("llama")
    theirs(model, tmp_path, 16)
    edit_config(tmp_path, qalora_pool=pool)
    state = Base(model).load_adapter(tmp_path, "x").file_state()
    for key, tensor in load_file(tmp_path / "adapter_model.safetensors").items():
        groups = 128 / 16 if "down_proj" in key else 64 / 16
        scale = (groups / 16 if factor is None else factor) if "lora_A" in key else 1
        assert_close(state[key], tensor * scale, atol=0, rtol=1e-6)


def test_an_unknown_convention_is_refused(tmp_path):
    theirs(tiny_model("llama"), tmp_path, 16)
    edit_config(tmp_path, qalora_pool="max")
    with pytest.raises(AdapterError, match=r"qalora_pool='max'.*sum, mean, mean_x_groups"):
        tiny_base().load_adapter(tmp_path, "x")


def test_outliers_in_fp16_do_not_overflow_the_sum():
    insert = insert_on(nn.Linear(64, 8), r=2)
    with torch.no_grad():
        insert.A.mul_(1e-3)
    x = torch.full((1, 64), 4000.0, dtype=torch.float16)  # a sum of 128,000
    found = insert(x, torch.zeros(1, 8, dtype=torch.float16))
    assert found.dtype == torch.float16 and torch.isfinite(found).all() and found.abs().max() > 1


def test_it_is_a_lora_with_a_repeated_a():
    base, batch = tiny_base(), inputs("llama")
    randomise(base.attach("x", QALoRA(r=4)))
    with base.using("x"):
        ours = base(**batch).logits
    blend(base, {"x": 1.0}, "y", how="cat")
    with base.using("y"):
        assert_close(base(**batch).logits, ours, atol=1e-5, rtol=1e-4)
