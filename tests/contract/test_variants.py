"""The laws for settings that give a method other inserts than its defaults do."""

import pytest
from bases import BASES
from laws import LAWS

from graft.core.registry import find

VARIANTS = {
    "prefix with its projection": ("prefix", {"prefix_projection": True, "encoder_hidden_size": 8}),
    "p-tuning by an LSTM": (
        "p_tuning",
        {"encoder_reparameterization_type": "LSTM", "encoder_hidden_size": 8},
    ),
    "lora with rows of the table": ("lora", {"r": 2, "trainable_token_indices": (5, 9)}),
    "lora on a table and what is tied to it": (
        "lora",
        {"r": 2, "target_modules": r".*(embed\w*s|shared|q_proj|\.q|query)", "ensure_weight_tying": True},
    ),
}


@pytest.mark.parametrize("law", [law for law in LAWS if law != "compiled_equals_eager"])
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_law(variant, base, law):
    name, settings = VARIANTS[variant]
    reason = LAWS[law](BASES[base], find(name)(**settings))
    if reason:
        pytest.skip(f"{variant}: {reason}")
