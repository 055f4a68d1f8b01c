"""Which linears are packed: those that compute x Wᵀ + b, whatever their class is called."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers.models.llama4.modeling_llama4 import Llama4Router
from transformers.pytorch_utils import Conv1D

from graft.planning.sketch import unreal
from graft.quant import QuantLinear, quantise_model
from graft.quant.replace import is_linear


class InTwoSteps(nn.Linear):
    def forward(self, input):
        product = input @ self.weight.T
        return product if self.bias is None else product + self.bias


class Started(nn.Linear):
    def __init__(self, *sizes, **settings):
        super().__init__(*sizes, **settings)
        nn.init.zeros_(self.weight)


class Scaled(nn.Linear):
    def forward(self, input):
        return super().forward(input) * 0.5


class Pair(nn.Linear):
    def forward(self, input):
        y = super().forward(input)
        return y, y.sigmoid()


class Grouped(nn.Linear):
    groups = 2

    def forward(self, input):
        one, other = input.chunk(self.groups, -1)
        return torch.cat([one, other], 0) @ self.weight.T


class Clipped(nn.Linear):
    limit = 30.0

    def forward(self, input):
        return F.linear(input, self.weight.clamp(-0.01, 0.01), self.bias)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "cls", [nn.Linear, InTwoSteps, Started, nn.modules.linear.NonDynamicallyQuantizableLinear]
)
def test_what_computes_the_product_is_linear(cls, bias):
    assert is_linear(cls(8, 6, bias=bias))
    with torch.device("meta"):
        assert is_linear(cls(8, 6, bias=bias))
    with unreal():
        assert is_linear(cls(8, 6, bias=bias))


@pytest.mark.parametrize("cls", [Scaled, Pair, Grouped, Clipped])
def test_what_computes_something_else_is_not(cls):
    module = cls(8, 6)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    assert not is_linear(module)
    assert module.in_features == 8 and all(torch.equal(module.state_dict()[k], v) for k, v in before.items())


def test_norms_tables_and_routers_are_no_linears():
    assert is_linear(Conv1D(6, 8)) and not is_linear(nn.LayerNorm(8)) and not is_linear(nn.Embedding(8, 6))
    config = type("", (), {"hidden_size": 8, "num_local_experts": 4, "num_experts_per_tok": 1})
    assert not is_linear(Llama4Router(config))


def test_a_module_with_both_packs_one_and_stays_right():
    torch.manual_seed(0)
    model = nn.Module()
    model.layers = nn.ModuleList([nn.Sequential(InTwoSteps(64, 64), Scaled(64, 64))])
    x = torch.randn(2, 64)
    expected = model.layers[0](x)
    quantise_model(model, "int8")
    packed, plain = model.layers[0]
    assert isinstance(packed, QuantLinear) and type(plain) is Scaled
    assert 0 < (model.layers[0](x) - expected).norm() / expected.norm() < 0.02
