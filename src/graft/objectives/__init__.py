"""What a step minimises: pure functions (base, batch) -> (sum of losses, metrics), one per stage."""

from collections.abc import Callable
from typing import Any

from graft.objectives.classify import classification
from graft.objectives.lm import Loss, language_modelling

Objective = Callable[[Any, Any], Loss]
BY_STAGE: dict[str, Objective] = {
    "pretrain": language_modelling,
    "sft": language_modelling,
    "classify": classification,
}
