"""What `Base.attach` and `Base.load_adapter` are given: a name, and methods with their settings."""

from collections.abc import Iterable
from typing import Any

from graft.core.method import Method
from graft.errors import UsageError

EXAMPLE = 'for example base.attach("sql", graft.LoRA(r=16))'


def require_name(name: object) -> None:
    """Raise UsageError for a name that is none, or is empty."""
    if not isinstance(name, str) or not name:
        raise UsageError(f"{name!r:.60} as the name of an adapter", "a text that is not empty", EXAMPLE)


def methods_given(given: Any) -> list[Method]:
    """Return the methods that an adapter is made of. Raises UsageError for what is no method."""
    several = isinstance(given, Iterable) and not isinstance(given, str)
    methods: list[Any] = list(given) if several else [given]
    for method in methods:
        if isinstance(method, type) and issubclass(method, Method):
            raise UsageError(
                f"the class {method.__name__} as a method",
                "a method with its settings",
                f"call it: graft.{method.__name__}()",
            )
        if not isinstance(method, Method):
            raise UsageError(f"{method!r:.60} as a method", "one Method, or a list of them", EXAMPLE)
    if not methods:
        raise UsageError("no method was given", "one Method or a list of them", EXAMPLE)
    return methods
