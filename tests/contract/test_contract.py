"""Every law, for every registered method, on every base. A new method is tested here without a line being written."""

import pytest
import torch
from laws import LAWS

from graft.base.base import Base
from graft.core.registry import find, names
from graft.quant import quantise_model
from models import tiny_model

BASES = {
    "fp32": lambda: Base(tiny_model("llama"), name="tiny"),
    "bf16": lambda: Base(tiny_model("llama").to(torch.bfloat16), name="tiny"),
    "nf4": lambda: Base(quantise_model(tiny_model("llama"), "nf4"), name="tiny"),
    "int4": lambda: Base(quantise_model(tiny_model("llama"), "int4"), name="tiny"),
    "encoder": lambda: Base(tiny_model("bert"), name="tiny"),
    "seq2seq": lambda: Base(tiny_model("t5"), name="tiny"),
}
SLOW = {"compiled_equals_eager"}  # half a second of tracing each: on fp32 only


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("name", names())
def test_law(name, base, law):
    method = find(name)()
    if base in ("nf4", "int4") and not method.quantisable:
        pytest.skip(f"{name} on {base}: {method.quantisable}")
    if law in SLOW and base != "fp32":
        pytest.skip("traced on fp32")
    reason = LAWS[law](BASES[base], method)
    if reason:
        pytest.skip(f"{name}: {reason}")
