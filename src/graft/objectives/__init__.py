"""What a step minimises: pure functions (base, batch) -> (loss summed over tokens or rows, metrics)."""

from collections.abc import Callable
from typing import Any

from graft.errors import UsageError
from graft.objectives.classify import classification, consistent_classification
from graft.objectives.lm import Loss, consistent_modelling, language_modelling

Objective = Callable[[Any, Any], Loss]
CONSISTENT: dict[Objective, Callable[..., Loss]] = {
    language_modelling: consistent_modelling,
    classification: consistent_classification,
}


def consistent(objective: Objective) -> Callable[..., Loss]:
    """Return the form of an objective that makes two passes and adds the distance of their predictions.

    It is called with (base, batch, weight, before_pass); before_pass is called before each forward.
    Raises UsageError for an objective that has no such form.
    """
    if objective not in CONSISTENT:
        known = " or ".join(function.__name__ for function in CONSISTENT)
        raise UsageError(
            "the method compares the predictions of two passes, "
            f"which {objective.__qualname__} does not support",
            f"a stage that minimises {known}",
            "set the method's consistency to 0, or choose another method",
        )
    return CONSISTENT[objective]
