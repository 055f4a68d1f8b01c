"""Hold every registered method to every law on every base. A new method needs no line here."""

import pytest
from bases import BASES, QUANTISED
from laws import LAWS

from graft.core.registry import find, names

ON_FP32_ONLY = {"compiled_equals_eager"}  # a second of tracing each


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(
    "base", [pytest.param(base, marks=[pytest.mark.quick] if base == "fp32" else []) for base in BASES]
)
@pytest.mark.parametrize("name", names())
def test_law(name, base, law):
    method = find(name)()
    if base in QUANTISED and not method.quantisable:
        pytest.skip(f"{name} on {base}: {method.quantisable}")
    if law in ON_FP32_ONLY and base != "fp32":
        pytest.skip("traced on fp32")
    reason = LAWS[law](BASES[base], method)
    if reason:
        pytest.skip(f"{name}: {reason}")
