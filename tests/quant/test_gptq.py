"""GPTQ against the plain algorithm in double precision: inverse Hessian, one column after the other."""

import gc

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from graft.base.base import Base
from graft.errors import ModelError, UsageError
from graft.kernels.groups import unpack_bits
from graft.quant import QuantLinear, Scheme, quantise_model
from graft.quant.gptq import choose, factor, quantise_calibrated
from models import inputs, tiny_model


def correlated(features, tokens, seed=0):
    """Inputs (tokens, features) as layers have them: mostly in few directions."""
    draw = torch.Generator().manual_seed(seed)
    mix = torch.randn(features // 4, features, generator=draw, dtype=torch.float64)
    few = torch.randn(tokens, features // 4, generator=draw, dtype=torch.float64)
    return few @ mix + 0.3 * torch.randn(tokens, features, generator=draw, dtype=torch.float64)


def plain(weight, x, bits, block):
    """Return (codes, values): take one column at a time out of the inverse Hessian (Optimal Brain)."""
    w, top = weight.clone(), 2**bits - 1
    H = 2 * x.T @ x
    inverse = torch.linalg.inv(H + 0.01 * H.diagonal().mean() * torch.eye(len(H), dtype=H.dtype))
    codes, values = torch.empty_like(w), torch.empty_like(w)
    for j in range(w.shape[1]):
        if j % block == 0:
            group = w[:, j : j + block]
            minimum = group.amin(1).half().double()
            scale = ((group.amax(1) - group.amin(1)) / top).half().double()
        codes[:, j] = ((w[:, j] - minimum) / scale).round().clamp(0, top)
        values[:, j] = scale * codes[:, j] + minimum
        error = (w[:, j] - values[:, j]) / inverse[j, j]
        w -= torch.outer(error, inverse[j])
        inverse = inverse - torch.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return codes, values


def packed(weight, scheme, U):
    layer = QuantLinear.pack(weight, scheme, quantise=lambda w: choose(w, scheme, U))
    return layer, layer.weight.double()


@pytest.mark.parametrize(("bits", "name"), [(4, "int4"), (3, "int3"), (2, "int2"), (8, "int8g")])
@pytest.mark.parametrize(("columns", "block"), [(64, 32), (96, 64), (75, 32)])
def test_codes_are_those_of_the_plain_algorithm(bits, name, columns, block):
    weight = torch.randn(20, columns, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = correlated(columns, 400)
    codes, values = plain(weight, x, bits, block)
    layer, found = packed(weight, Scheme(name, block), factor(x.T @ x))
    assert torch.equal(unpack_bits(layer.codes, bits)[:, :columns].double(), codes)
    assert_close(found, values, atol=1e-12, rtol=1e-12)
    rounded = unpack_bits(QuantLinear.pack(weight, Scheme(name, block)).codes, bits)[:, :columns]
    assert (rounded.double() != codes).double().mean() > 0.1  # the inputs matter


@pytest.mark.parametrize("name", ["int4", "int3", "int2"])
@pytest.mark.parametrize("tokens", [30, 400])
def test_the_output_on_calibration_inputs_changes_less_than_by_rounding_to_nearest(name, tokens):
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(2))
    x = correlated(64, tokens).float()  # fewer tokens than features: the Hessian alone has no inverse
    scheme = Scheme(name, 32)
    ours = packed(weight, scheme, factor(x.T @ x))[1].float()
    nearest = QuantLinear.pack(weight, scheme).weight
    lost = [((w - weight) @ x.T).square().sum() for w in (ours, nearest)]
    assert lost[0] < 0.7 * lost[1]


def test_what_no_input_reaches_is_rounded_to_nearest():
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(2))
    for hessian in (torch.zeros(64, 64), torch.full((64, 64), torch.nan)):
        assert factor(hessian) is None
    expected = QuantLinear.pack(weight, Scheme("int4")).weight
    assert torch.equal(packed(weight, Scheme("int4"), None)[1].float(), expected)
    x = correlated(64, 400).float()
    x[:, 7] = 0  # a dead feature: nothing is carried over to it or from it
    found = packed(weight, Scheme("int4", 64), factor(x.T @ x))[1]
    assert torch.isfinite(found).all() and (found[:, 7] - weight[:, 7]).abs().max() < 0.3


def batches(family, rows=6):
    batch = inputs(family, rows=rows, length=24)
    ids = batch.pop("ids")
    own = {} if family == "bert" else {"use_cache": False}
    return [
        {"input_ids": ids[i : i + 1], **{k: v[i : i + 1] for k, v in batch.items()}, **own}
        for i in range(rows)
    ]


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5", "gemma2", "phi"])
def test_a_model_answers_its_calibration_rows_better_than_rounded_to_nearest(family):
    rows, done = batches(family), []
    model = quantise_calibrated(tiny_model(family), rows, Scheme("int3"), lambda *at: done.append(at))
    nearest, whole = quantise_model(tiny_model(family), "int3"), tiny_model(family)
    names = [[n for n, m in one.named_modules() if isinstance(m, QuantLinear)] for one in (model, nearest)]
    assert names[0] == names[1] and done[-1][0] == done[-1][1] == len(done)
    assert not any(m._forward_pre_hooks for m in model.modules())
    with torch.no_grad():
        wanted = [whole(**row).logits for row in rows]
        lost = [
            sum((one(**row).logits - w).square().sum() for row, w in zip(rows, wanted, strict=True))
            for one in (model, nearest)
        ]
    assert lost[0] < 0.9 * lost[1]


def test_blocks_are_packed_one_after_the_other_and_no_hessian_outlives_its_block():
    model, seen = tiny_model("llama"), []

    def look(done, of):
        packed = [n for n, m in model.named_modules() if isinstance(m, QuantLinear)]
        square = [o for o in gc.get_objects() if type(o) is torch.Tensor and o.shape == (128, 128)]
        seen.append((done, {n.split(".")[2] for n in packed}, len(square)))

    quantise_calibrated(model, batches("llama"), Scheme("int4"), look)
    assert seen == [(1, {"0"}, 0), (2, {"0", "1"}, 0)]


def test_a_block_is_calibrated_by_what_the_packed_blocks_before_it_answer():
    rows, scheme = batches("llama"), Scheme("int4")
    model = quantise_calibrated(tiny_model("llama"), rows, scheme)
    mixed, seen = tiny_model("llama"), []
    mixed.model.layers[0] = model.model.layers[0]  # the packed first block, the original second
    for name in ("self_attn.v_proj", "mlp.down_proj"):
        seen.clear()
        linear = mixed.model.layers[1].get_submodule(name)
        handle = linear.register_forward_pre_hook(
            lambda module, args: seen.append(args[0].detach().flatten(0, 1))
        )
        for row in rows:
            mixed(**row)
        handle.remove()
        x = torch.cat(seen)
        expected = choose(linear.weight.detach(), scheme, factor(x.T @ x))
        layer = model.model.layers[1].get_submodule(name)
        same = (unpack_bits(layer.codes, 4) == unpack_bits(expected["codes"], 4)).float().mean()
        assert same > 0.999  # sums of fp32 in another order


def test_a_weight_that_is_not_finite_is_named_and_nothing_to_calibrate_by_is_refused():
    model = tiny_model("llama")
    with pytest.raises(UsageError, match="0 calibration rows"):
        quantise_calibrated(model, [], Scheme("int4"))
    with pytest.raises(UsageError, match="calibration rows for nf4"):
        quantise_calibrated(model, batches("llama"), Scheme("nf4"))
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = torch.nan
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.down_proj\.weight"):
        quantise_calibrated(model, batches("llama"), Scheme("int4"))


def test_biases_and_conv1d_stay_as_they_were():
    model = quantise_calibrated(tiny_model("gpt2"), batches("gpt2"), Scheme("int4"))
    layer, original = model.transformer.h[0].attn.c_attn, tiny_model("gpt2").transformer.h[0].attn.c_attn
    assert (
        layer.transposed and torch.equal(layer.bias, original.bias) and isinstance(layer.bias, nn.Parameter)
    )
    assert (layer.weight - original.weight.T).abs().max() < 0.2
    assert torch.isfinite(Base(model)(**inputs("gpt2")).logits).all()
