"""Faster parts on a model: the same answers and gradients as the stock code, the same hooks, and no trace."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from graft.base import fast_attention, fast_parts
from graft.base.base import Base
from graft.base.linears import Linears
from graft.data.pack import packed
from graft.kernels import native
from graft.methods.lora import LoRA
from graft.methods.prefix import PrefixTuning
from models import inputs, randomise, tiny_base, tiny_model

pytestmark = pytest.mark.skipif(not native.levels(), reason="the kernels were not built")
SETTINGS = {
    "llama": {},
    "mistral": {"sliding_window": 5},
    "qwen2": {},
    "qwen3": {},
    "gemma": {},
    "gemma2": {"attn_implementation": "eager"},
    "phi3": {},
    "gpt2": {},
    "gpt_neox": {},
    "bert": {},
    "t5": {},
}
# How many modules of two blocks get another forward: norms, gated activations, rotations.
PARTS = {
    "llama": 9, "mistral": 9, "qwen2": 9, "qwen3": 13, "gemma": 9, "gemma2": 13, "phi3": 7, "gpt2": 0,
    "gpt_neox": 2, "bert": 0, "t5": 12,
}  # fmt: skip


def faster_parts(model):
    changed = [module for module in model.modules() if "forward" in vars(module)]
    return [module for module in changed if not isinstance(module, torch.nn.Linear)]


def answers(model, batch, trained=True):
    """Return logits and the gradients of all parameters."""
    model.requires_grad_(trained)
    batch = dict(batch)
    logits = model(batch.pop("ids"), **batch).logits
    weight = torch.randn(logits.shape, generator=torch.Generator().manual_seed(7))
    found = {name: p for name, p in model.named_parameters()}
    grads = torch.autograd.grad(logits, list(found.values()), weight, allow_unused=True)
    return logits, {name: grad for name, grad in zip(found, grads, strict=True) if grad is not None}


def assert_same(model, stock, batch):
    logits, grads = answers(model, batch)
    wanted, wanted_grads = answers(stock, batch)
    assert_close(logits, wanted, atol=1e-5, rtol=1e-5)
    assert grads.keys() == wanted_grads.keys()
    top = max(float(g.abs().max()) for g in wanted_grads.values())
    for name, grad in grads.items():
        assert_close(grad, wanted_grads[name], atol=1e-6 * top, rtol=1e-4, msg=name)


@pytest.mark.parametrize("family", SETTINGS)
def test_answers_and_gradients_are_those_of_the_stock_code(family):
    model, stock = (tiny_model(family, **SETTINGS[family]) for _ in range(2))
    base = Base(model)
    assert len(faster_parts(model)) == PARTS[family]
    name = "eager" if family == "gemma2" else "native_sdpa"
    assert model.config._attn_implementation == name
    assert_same(base.model, stock, inputs(family, length=19))


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_are_those_of_the_stock_code(family, side):
    model, stock = (tiny_model(family, **SETTINGS[family]) for _ in range(2))
    batch, mask = inputs(family, length=17), torch.ones(3, 17, dtype=torch.long)
    mask[1, slice(5) if side == "left" else slice(-5, None)] = 0
    Base(model)
    ids, live = batch["ids"], mask.bool()
    got, wanted = model(ids, attention_mask=mask).logits, stock(ids, attention_mask=mask).logits
    assert_close(got[live], wanted[live], atol=1e-5, rtol=1e-5)
    assert got.isfinite().all()


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_packed_rows_are_those_of_the_stock_code(family):
    groups = [
        [(list(range(4, 4 + n)), list(range(4, 4 + n))) for n in group] for group in ((9, 3, 5), (14, 2))
    ]
    batch, _ = packed(groups, pad=0, causal=True)
    model, stock = (tiny_model(family, **SETTINGS[family]) for _ in range(2))
    Base(model)
    batch["ids"] = batch.pop("input_ids")
    assert fast_attention._ranges(batch["attention_mask"]) is not None
    assert_same(model, stock, batch)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_off_leaves_no_trace(implementation):
    model = tiny_model("llama")
    model.set_attn_implementation(implementation)
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    base = Base(model)
    assert faster_parts(model)
    base.faster(False)
    for name, module in model.named_modules():
        assert vars(module).keys() == before[name].keys()
    assert model.config._attn_implementation == implementation
    assert list(model.state_dict()) == list(tiny_model("llama").state_dict())


def test_off_under_inserts_at_keys_and_values_and_on_again():
    base, batch = tiny_base("llama"), inputs("llama")
    base.faster(False)
    randomise(base.attach("x", PrefixTuning(num_virtual_tokens=3)))
    with base.using("x"):
        stock = base(**batch).logits
        base.faster(True)
        assert base.model.config._attn_implementation == "graft_native_sdpa"
        assert_close(base(**batch).logits, stock, atol=1e-5, rtol=1e-5)
        base.faster(False)
        assert torch.equal(base(**batch).logits, stock)
    base.detach("x")
    assert base.model.config._attn_implementation == "sdpa"


def test_hooks_fire_in_the_same_order():
    orders = []
    for on in (True, False):
        base, seen = tiny_base("llama"), []
        base.faster(on)
        for name, module in base.model.named_modules():
            module.register_forward_pre_hook(lambda *_, name=name, seen=seen: seen.append(f"{name} before"))
            module.register_forward_hook(lambda *_, name=name, seen=seen: seen.append(f"{name} after"))
        base(**inputs("llama"))
        orders.append(seen)
    with_activations = [name for name in orders[1] if ".act_fn " not in name]
    assert orders[0] == with_activations


@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_adapter_gets_the_same_gradients(checkpointing):
    found = []
    for on in (True, False):
        base, batch = tiny_base("llama"), inputs("llama", length=12)
        base.faster(on)
        adapter = base.attach("x", LoRA(r=4, target_modules="all-linear"))
        randomise(adapter)
        base.train()
        base.checkpointing(checkpointing)
        logits = base(**batch, adapters=["x", None, "x"]).logits
        found.append(torch.autograd.grad(logits.square().sum(), list(adapter.parameters())))
    top = max(float(gradient.abs().max()) for gradient in found[1])
    for ours, stock in zip(*found, strict=True):
        assert_close(ours, stock, atol=3e-6 * top, rtol=1e-4)


def test_in_bf16_the_answers_are_as_close_to_fp32_as_the_stock_codes():
    exact = tiny_model("llama")(inputs("llama", length=32)["ids"]).logits
    errors = []
    for on in (True, False):
        base = Base(tiny_model("llama").to(torch.bfloat16))
        base.faster(on)
        errors.append(
            float((base(**inputs("llama", length=32)).logits.float() - exact).square().mean().sqrt())
        )
    assert errors[0] < 1.05 * errors[1]


def test_text_is_written_with_a_cache_as_by_the_stock_code():
    base, ids = tiny_base("mistral", sliding_window=5), inputs("mistral")["ids"]
    written = []
    for on in (True, False):
        base.faster(on)
        written.append(base.model.generate(ids, max_new_tokens=12, do_sample=False))
    assert torch.equal(*written)


def test_a_copy_of_the_model_runs_on_its_own_weights():
    base, batch = tiny_base("llama"), inputs("llama")
    twin = copy.deepcopy(base.model)
    before = base(**batch).logits
    with torch.no_grad():
        twin.model.layers[0].mlp.down_proj.weight.zero_()
        twin.model.layers[0].input_layernorm.weight.zero_()
    assert torch.equal(base(**batch).logits, before)
    assert not torch.allclose(twin(batch["ids"]).logits, before)


def test_compiled_code_is_the_stock_code():
    base, batch = tiny_base("llama", num_hidden_layers=1), inputs("llama")
    eager = base(**batch).logits
    base.compile(backend="eager", fullgraph=True)
    base.attach("x", LoRA(r=2))
    with base.using("x"):
        assert_close(base(**batch).logits, eager, atol=1e-5, rtol=1e-5)


def test_without_the_kernels_nothing_is_put_on():
    model = tiny_model("llama")
    with native.at_level("reference"):
        Base(model)
    assert not faster_parts(model) and model.config._attn_implementation == "sdpa"


class Centred(LlamaRMSNorm):
    def forward(self, hidden_states):
        return super().forward(hidden_states - hidden_states.mean(-1, keepdim=True))


class Sparse(LlamaMLP):
    def forward(self, x):
        gate = self.gate_proj(x)
        return self.down_proj(self.act_fn(gate * (gate > 0.1)) * self.up_proj(x))


class Clipped(nn.SiLU):
    def forward(self, x):
        return super().forward(x).clamp(max=7.0)


def test_code_that_computes_something_else_stays():
    model = tiny_model("llama")
    layer = model.model.layers[0]
    layer.input_layernorm.__class__, layer.mlp.__class__ = Centred, Sparse
    model.model.layers[1].mlp.act_fn = Clipped()
    Base(model)
    kept = [layer.input_layernorm, layer.mlp, model.model.layers[1].mlp]
    assert not any("forward" in vars(module) for module in kept)
    assert len(faster_parts(model)) == PARTS["llama"] - 3


@pytest.mark.parametrize(
    ("name", "activation"),
    [("silu", "silu"), ("gelu", "gelu"), ("gelu_pytorch_tanh", "gelu_tanh"), ("gelu_new", "gelu_tanh"),
     ("relu", "relu"), ("quick_gelu", None), ("relu2", None), ("gelu_10", None)],
)  # fmt: skip
def test_activations_are_known_by_their_values(name, activation):
    from transformers.activations import ACT2FN

    assert fast_parts._activation(ACT2FN[name]) == activation


@pytest.mark.parametrize("level", native.levels())
def test_a_newborn_update_of_a_large_plain_linear_changes_no_bit(level):
    """Products so large are the kernels' own where they are as fast as torch's; smaller ones are torch's."""
    linear, x = torch.nn.Linear(512, 256), torch.randn(80, 512, requires_grad=True)
    linear.requires_grad_(False)
    holder = torch.nn.ModuleList([linear])
    stock = linear(x)
    fast = Linears(holder)
    fast.put_on()
    A, B = torch.randn(4, 512, requires_grad=True), torch.zeros(256, 4, requires_grad=True)
    with native.at_level(level):
        bare = linear(x)
        (slope,) = torch.autograd.grad(bare.sum(), x)
        linear.beside = lambda x: (A, B, 2.0)
        newborn = linear(x)
        (slope_too,) = torch.autograd.grad(newborn.sum(), x)
    assert torch.equal(bare, newborn) and torch.equal(slope, slope_too)
    assert torch.equal(bare, stock) == (level != "avx2")
    torch.testing.assert_close(bare, stock, rtol=1e-5, atol=1e-5)
