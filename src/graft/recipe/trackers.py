"""Trackers of experiments that a recipe may name, each with the package that it needs."""

from graft.errors import nearest

TRACKERS = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow", "trackio": "trackio"}


def as_list(given: object) -> object:
    """Return the trackers of `report_to` as a list: one word is one tracker, null and "none" are none."""
    if given in (None, "none"):
        return []
    return [given] if isinstance(given, str) else given


def problem(names: list[str]) -> str:
    """Return what is wrong with the names of trackers; "" if nothing is.

    >>> problem(["wandb", "tensorbord"])
    "names 'tensorbord', which is no tracker; nearest: tensorboard"
    """
    for name in names:
        if name not in TRACKERS:
            close = ", ".join(nearest(name, TRACKERS, 1))
            return f"names {name!r}, which is no tracker; nearest: {close}"
    return ""
