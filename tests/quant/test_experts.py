"""Experts in packed form: each matrix as a linear's weight would be, computed as transformers does."""

import copy

import pytest
import torch
from mixtures import MIXTURES, REGISTERED
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

import graft
from graft.base.base import Base
from graft.models.load import load
from graft.planning.sketch import sketch, unreal
from graft.quant import QuantLinear, Scheme, dequantise_model, quantise_model
from graft.quant.experts import (
    Order,
    PackedExperts,
    corrections,
    grouped,
    packed_experts,
    use_its_own,
    use_ours,
)
from models import inputs, tiny_model


def mixture(family):
    return tiny_model(family, **MIXTURES[family])


@pytest.mark.parametrize("scheme", ["nf4", "int8", "int4"])
@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_every_expert_is_packed_as_the_weight_of_a_linear(family, scheme):
    plain = mixture(family).requires_grad_(False)
    packed = packed_experts(quantise_model(copy.deepcopy(plain), scheme))
    assert packed.keys() == {name for name, p in plain.named_parameters() if p.ndim == 3}
    for name, parameter in plain.named_parameters():
        for e, matrix in enumerate(parameter if name in packed else []):
            alone = QuantLinear.pack(matrix.T.contiguous() if family == "gpt_oss" else matrix, Scheme(scheme))
            for part, tensor in alone.packed().items():
                assert torch.equal(getattr(packed[name].layers[e], part), tensor)


@pytest.mark.parametrize("family", REGISTERED)
def test_packed_experts_compute_what_their_decoded_weights_do_in_transformers(family):
    packed = quantise_model(mixture(family), "nf4")
    decoded = mixture(family)
    decoded.load_state_dict(dequantise_model(copy.deepcopy(packed)).state_dict())
    for implementation in ("eager", "grouped_mm"):
        decoded.set_experts_implementation(implementation)
        ids = inputs("llama")["ids"]
        assert_close(packed(ids).logits, decoded(ids).logits, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("family", REGISTERED)
def test_our_way_through_plain_experts_is_that_of_transformers(family):
    model, ids = mixture(family), inputs("llama")["ids"]
    model.set_experts_implementation("eager")
    wanted = model(ids).logits
    use_ours(model)
    for module in model.modules():
        corrections[module] = lambda name, x, order: None  # so that it steps in
    got = model(ids).logits
    for module in model.modules():
        del corrections[module]
    assert_close(got, wanted, atol=1e-6, rtol=1e-6)
    use_its_own(model)
    assert model.get_experts_implementation() == {"": "eager"}


def test_gradients_pass_through_packed_experts_as_through_decoded_ones():
    packed = quantise_model(mixture("mixtral"), "nf4").requires_grad_(False)
    decoded = mixture("mixtral").requires_grad_(False)
    decoded.load_state_dict(dequantise_model(copy.deepcopy(packed)).state_dict())
    gradients = []
    for model in (packed, decoded):
        states = model.get_input_embeddings()(inputs("llama")["ids"]).detach().requires_grad_()
        model(inputs_embeds=states).logits.square().sum().backward()
        gradients.append(states.grad)
    assert_close(*gradients, atol=1e-5, rtol=1e-5)


def test_rows_meet_the_matrix_of_their_expert():
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(5, 3, generator=generator), torch.randn(4, 2, 3, generator=generator)
    index = torch.tensor([[2, 0], [2, 3], [0, 2], [3, 2], [2, 0]])  # nobody chose expert 1
    order = Order.of(index, 4)
    assert order.sizes == [3, 0, 5, 2] and order.ends.tolist() == [3, 3, 8, 10]
    products = grouped(x[order.token], weight, order)
    for product, token, expert in zip(products, order.token, order.expert, strict=True):
        assert_close(product, weight[expert] @ x[token])


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "deepseek_v3"])
def test_a_folder_is_packed_while_it_loads_and_saved_as_it_is(tmp_path, family):
    model, ids = mixture(family), inputs("llama")["ids"]
    model.save_pretrained(tmp_path / "plain")
    base = load(tmp_path / "plain", quant="nf4", dtype="fp32")
    in_memory = quantise_model(model, "nf4")
    torch.testing.assert_close(base(ids).logits, in_memory(ids).logits, atol=1e-5, rtol=1e-5)
    base.model.save_pretrained(tmp_path / "packed")
    for again in (
        load(tmp_path / "packed", dtype="fp32").model,
        AutoModelForCausalLM.from_pretrained(tmp_path / "packed", dtype=torch.float32),
    ):
        assert len(packed_experts(again)) == len(packed_experts(base.model)) > 0
        torch.testing.assert_close(again(ids).logits, base(ids).logits, atol=1e-5, rtol=1e-5)


def test_a_packed_folder_without_packed_experts_loads_as_it_is(tmp_path):
    model = mixture("mixtral")
    model.save_pretrained(tmp_path / "plain")
    base = load(tmp_path / "plain", quant="nf4", dtype="fp32")
    base.model.hf_quantizer.quantization_config.experts = False  # as folders were written before
    for name, experts in packed_experts(base.model).items():
        path, _, leaf = name.rpartition(".")
        owner = base.model.get_submodule(path)
        delattr(owner, leaf)
        setattr(owner, leaf, torch.nn.Parameter(experts.weight, requires_grad=False))
    ids = inputs("llama")["ids"]
    wanted = base(ids).logits
    base.model.save_pretrained(tmp_path / "packed")
    again = load(tmp_path / "packed", dtype="fp32")
    assert again.quant == "nf4" and not packed_experts(again.model)
    assert_close(again(ids).logits, wanted, atol=1e-6, rtol=1e-6)


def test_counts_and_fingerprint_stay_those_of_the_plain_model():
    plain, packed = Base(mixture("olmoe")), Base(quantise_model(mixture("olmoe"), "nf4"))
    assert packed.quant == "nf4"
    assert packed.count() == plain.count()
    assert packed.fingerprint() == plain.fingerprint()
    shapes = [
        {s.name: (s.experts, s.out_features, s.in_features) for s in base.sites if s.kind == "parameter"}
        for base in (plain, packed)
    ]
    assert shapes[0] == shapes[1] and len(shapes[0]) == 6  # two matrices and a router in each block


def test_a_plan_has_the_bytes_of_packed_experts():
    def size(model):
        return sum(tensor.nbytes for tensor in model.state_dict().values())

    packed = Base(quantise_model(mixture("gpt_oss"), "int8"))
    config = mixture("gpt_oss").config
    with unreal():
        planned = sketch(config, quant="int8", dtype=torch.float32)
    assert size(planned.model) == size(packed.model)
    assert planned.count() == packed.count()
    assert {site.name for site in planned.sites} == {site.name for site in packed.sites}


def test_experts_that_are_not_finite_are_named(tmp_path):
    model = mixture("mixtral")
    with torch.no_grad():
        model.model.layers[1].mlp.experts.down_proj[2, 0, 0] = torch.nan
    with pytest.raises(graft.GraftError, match=r"layers\.1\.mlp\.experts\.down_proj"):
        quantise_model(copy.deepcopy(model), "nf4")
    model.save_pretrained(tmp_path)
    with pytest.raises(graft.GraftError, match=r"layers\.1\.mlp\.experts\.down_proj"):
        load(tmp_path, quant="nf4")


def test_the_shape_is_that_of_the_parameter():
    weight = torch.randn(3, 4, 10)
    for turned in (False, True):
        packed = PackedExperts.pack(weight, Scheme("int8"), transposed=turned)
        assert packed.shape == weight.shape == packed.weight.shape
        assert (packed.weight - weight).abs().max() < 0.05


def test_experts_that_cannot_be_packed_are_said_so_with_their_share(tmp_path):
    model = mixture("jetmoe")
    model.save_pretrained(tmp_path)
    experts = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 3)
    share = f"{experts / sum(p.numel() for p in model.parameters()):.0%}"
    with pytest.warns(graft.Notice, match=f"{share} of the weights stay in fp32, not in nf4.*linear"):
        load(tmp_path, quant="nf4", dtype="fp32")


def test_nothing_is_said_of_experts_that_are_packed(tmp_path, recwarn):
    mixture("olmoe").save_pretrained(tmp_path)
    load(tmp_path, quant="nf4", dtype="fp32")
    load(tmp_path, dtype="fp32")
    assert not [w for w in recwarn if issubclass(w.category, graft.Notice)]
