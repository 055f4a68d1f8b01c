"""The laws for LoRA on the experts and the router of a mixture, plain and packed."""

import copy
import functools

import pytest
from bases import base_of
from laws import LAWS
from mixtures import EXPERTS, MIXTURES
from torch import nn

from graft.methods.lora import LoRA
from graft.quant import quantise_model
from models import tiny_model

ROUTERS = {"qwen3_moe": "mlp.gate.weight", "gpt_oss": "mlp.router.weight"}


@functools.cache
def packed(family: str) -> nn.Module:
    """Return the mixture in nf4; quantised once, so callers must copy it."""
    return quantise_model(tiny_model(family, **MIXTURES[family]), "nf4")


CASES = [
    (family, scheme, law)
    for family in ROUTERS
    for scheme in ("fp32", "nf4")
    for law in LAWS
    if law != "compiled_equals_eager" or (family, scheme) == ("qwen3_moe", "nf4")  # it takes long
]


@pytest.mark.parametrize(("family", "scheme", "law"), CASES)
def test_law(family, scheme, law):
    plain = functools.partial(tiny_model, family, **MIXTURES[family])
    base = base_of(plain if scheme == "fp32" else lambda: copy.deepcopy(packed(family)))
    method = LoRA(r=4, target_modules=("v_proj",), target_parameters=(*EXPERTS, ROUTERS[family]))
    reason = LAWS[law](base, method)
    if reason:
        pytest.skip(f"{family}: {reason}")
