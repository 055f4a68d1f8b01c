"""What a step minimises: pure functions (base, batch) -> (sum of losses, metrics), one per stage."""

from collections.abc import Callable
from typing import Any

from graft.errors import UsageError
from graft.objectives.classify import classification, consistent_classification
from graft.objectives.lm import Loss, consistent_modelling, language_modelling

Objective = Callable[[Any, Any], Loss]
BY_STAGE: dict[str, Objective] = {
    "pretrain": language_modelling,
    "sft": language_modelling,
    "classify": classification,
}
CONSISTENT: dict[Objective, Callable[..., Loss]] = {
    language_modelling: consistent_modelling,
    classification: consistent_classification,
}


def consistent(objective: Objective) -> Callable[..., Loss]:
    """The form of an objective that makes two passes and adds how far their predictions differ.

    (base, batch, weight, before_pass) -> (sum of losses, metrics); before_pass is called before each forward.
    """
    if objective not in CONSISTENT:
        known = ", ".join(stage for stage, own in BY_STAGE.items() if own in CONSISTENT)
        raise UsageError(
            f"a method asks that two passes predict alike, which {objective.__name__} has no form for",
            f"one of the stages {known}",
            "set its consistency to 0, or choose another method",
        )
    return CONSISTENT[objective]
