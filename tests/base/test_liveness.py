"""Sites are what the answer depends on: a forward is watched, and autograd's own gradients are the oracle."""

import families
import pytest
import torch

from graft import LoRA
from graft.base.base import Base
from graft.errors import SiteError
from models import inputs, tiny_base


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
