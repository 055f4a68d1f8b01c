"""Sites are what the answer depends on: a forward is watched, and autograd's own gradients are the oracle."""

import families
import pytest
import torch

from graft import LoRA
from graft.base.base import Base
from graft.errors import Notice, SiteError
from graft.methods.houlsby import Houlsby
from graft.methods.pfeiffer import Pfeiffer
from graft.methods.prefix import PrefixTuning
from graft.methods.prompt import PromptTuning
from models import inputs, randomise, tiny_base, tiny_model


def without_gradient(name: str) -> set[str]:
    """Return the linears of a family whose output no number of the answer has a gradient for."""
    model, outputs = families.build(name), {}
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda m, args, y, path=path: outputs.setdefault(path, y))
    answer = model(**families.inputs(model))
    (answer[0] * torch.linspace(-1, 1, answer[0].shape[-1])).square().sum().backward(
        inputs=[p for p in model.parameters() if p.requires_grad]
    )
    return {path for path in outputs if model.get_submodule(path).weight.grad is None}


@pytest.mark.parametrize("name", ["deepseek_v32", "big_bird", "mra"])
def test_a_projection_that_leads_to_no_answer_is_no_site(name):
    base = Base(families.build(name))
    idle = without_gradient(name)
    linears = {site.name for site in base.sites if site.kind == "linear"}
    assert idle and not idle & linears
    with pytest.raises(SiteError, match="matches no site"):
        base.attach("x", LoRA(target_modules=[min(idle)]))


def test_a_pooler_is_part_of_the_answer():
    base = Base(families.build("bert-plain"))
    assert "pooler.dense" in {site.name for site in base.sites}


def test_watching_leaves_no_graph_and_no_gradient_behind():
    base = tiny_base()
    assert base.sites
    assert not base(**inputs("llama")).logits.requires_grad
    assert not any(p.requires_grad or p.grad is not None for p in base.model.parameters())
    assert not any(m._forward_hooks for m in base.model.modules())


class Softmaxed(torch.nn.Linear):
    """A router that looks like a projection and returns its shape."""

    def forward(self, x):
        return super().forward(x).softmax(-1)


class Doubling(torch.nn.Linear):
    """A Linear with a forward of its own that returns what Linear returns."""

    def forward(self, x):
        return x @ self.weight.T


def names(base: Base, kind: str) -> set[str]:
    return {site.name for site in base.sites if site.kind == kind}


def test_a_subclass_of_linear_is_a_projection_if_it_returns_the_product():
    model = tiny_model("llama")
    for path, cls in (("model.layers.0.mlp.up_proj", Softmaxed), ("model.layers.1.mlp.up_proj", Doubling)):
        model.get_submodule(path).__class__ = cls
    linears = names(Base(model), "linear")
    assert "model.layers.0.mlp.up_proj" not in linears and "model.layers.1.mlp.up_proj" in linears


def test_a_router_that_returns_scores_and_logits_is_no_projection():
    base = Base(families.build("llama4_text"))
    assert not any("router" in name for name in names(base, "linear"))
    randomise(base.attach("x", LoRA(r=2)))
    ids = inputs("llama")["ids"]
    with base.using("x"):
        attached = base(ids).logits
    base.merge("x")
    torch.testing.assert_close(base(ids).logits, attached, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "dead"), [("mamba", "dt_proj"), ("jamba", "dt_proj"), ("gemma3n_text", "correction_coefs")]
)
def test_a_projection_that_training_never_calls_is_no_site(name, dead):
    base = Base(families.build(name))
    assert any(path.endswith(dead) for path, _ in base.model.named_modules())
    assert not any(path.endswith(dead) for path in names(base, "linear"))


def test_experts_to_which_no_token_is_sent_are_sites():
    base = Base(families.build("switch_transformers"))
    experts = {path for path, _ in base.model.named_modules() if "expert_" in path and path.endswith(".wi")}
    assert experts and experts <= names(base, "linear")


def test_tensors_of_a_file_at_a_place_that_is_never_called_are_left_out_and_named(tmp_path):
    """PEFT trains Mamba's dt_proj, without an effect."""
    import peft
    from safetensors.torch import load_file

    model = peft.get_peft_model(
        families.build("mamba"), peft.LoraConfig(r=2, target_modules=["in_proj", "dt_proj"])
    )
    model.save_pretrained(tmp_path)
    assert any("dt_proj" in key for key in load_file(tmp_path / "adapter_model.safetensors"))
    base = Base(families.build("mamba"))
    with pytest.warns(Notice, match="dt_proj.*left out"):
        adapter = base.load_adapter(tmp_path, "x")
    assert not any("dt_proj" in site.name for site, _ in adapter.inserts)


@pytest.mark.parametrize("name", ["gptj", "bloom", "falcon", "mpt", "xglm", "deberta-v2", "mamba", "rwkv"])
def test_a_prefix_is_refused_where_no_attention_takes_it(name):
    with pytest.raises(SiteError, match="no attention of this model"):
        Base(families.build(name)).attach("x", PrefixTuning(num_virtual_tokens=2))


def test_a_prefix_is_refused_where_keys_and_values_differ_in_width():
    with pytest.raises(SiteError, match="have not one width"):
        Base(families.build("deepseek_v2")).attach("x", PrefixTuning(num_virtual_tokens=2))


@pytest.mark.parametrize("name", ["longt5", "qwen3_next", "minimax", "jamba"])
def test_blocks_that_a_prefix_does_not_reach_are_named_and_every_part_of_it_learns(name):
    base = Base(families.build(name))
    with pytest.warns(Notice, match="prefix: . of . blocks have no attention"):
        adapter = base.attach("x", PrefixTuning(num_virtual_tokens=2))
    with base.using("x"):
        base(**families.inputs(base.model)).logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in adapter.parameters())


def test_what_a_forward_refuses_is_an_error_at_attach_and_nothing_stays():
    """CPM-Ant makes its positions from ids that it extends itself."""
    base = Base(families.build("cpmant"))
    with pytest.raises(SiteError, match="CpmAnt"):
        base.attach("x", PromptTuning(num_virtual_tokens=2))
    assert not base.adapters and not any(m._forward_hooks for m in base.model.modules())


def test_a_gate_of_experts_is_not_the_end_of_a_sublayer():
    base = Base(families.build("qwen2_moe"))
    assert any(path.endswith("shared_expert_gate") for path in names(base, "linear"))
    adapter = base.attach("x", Houlsby())
    assert not any("expert" in site.name for site, _ in adapter.inserts)


def test_a_block_inside_a_block_is_counted_once_and_its_adapter_is_saved_whole(tmp_path):
    base, again = (Base(families.build("zamba2")) for _ in range(2))
    adapter = base.attach("x", Pfeiffer(m=4))
    randomise(adapter)
    adapter.save(tmp_path)
    assert sum(t.numel() for t in adapter.file_state().values()) == adapter.count()
    again.load_adapter(tmp_path, "x")
    ids = inputs("llama")["ids"]
    with base.using("x"), again.using("x"):
        assert torch.equal(again(ids).logits, base(ids).logits)
