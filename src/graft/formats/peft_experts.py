"""Targets that PEFT takes for the experts of a mixture, though they are ordinary projections.

Checkpoints of these mixtures were written when every expert had modules of its own, named like those of an
ordinary feed-forward part. PEFT (0.21, with transformers 5) reads such names in a LoRA's `target_modules` as
the experts', whose matrices are one parameter now. The dense layers and shared experts that have the same
names are left out, without an error: such a file answers otherwise there.
"""

from collections.abc import Iterable

from transformers import conversion_mapping

# By the family whose checkpoints a model type shares: names that PEFT replaces.
REPLACED = {
    "mixtral": ("gate", "w1", "w2", "w3"),
    "qwen2_moe": ("gate", "gate_proj", "up_proj", "down_proj"),
}


def taken_for_experts(model_type: str, targets: Iterable[str]) -> list[str]:
    """Return the targets of a LoRA's file that PEFT looks for among the experts of this type of model."""
    families = {"mixtral": "mixtral", **getattr(conversion_mapping, "_MODEL_TO_CONVERSION_PATTERN", {})}
    names = REPLACED.get(families.get(model_type, ""), ())
    return [target for target in targets if target.rpartition(".")[2] in names]
