"""Find methods by name: a method is a file of `graft/methods`, and its file name is its name."""

import importlib
import pkgutil
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from graft.core.cards import class_of_file
from graft.core.method import Method
from graft.errors import one_of


def find(name: str) -> type[Method]:
    """Return the method class of `graft/methods/NAME.py`. Raises UsageError with the nearest name."""
    module = importlib.import_module(f"graft.methods.{one_of('method', name, names())}")
    methods = {
        value.__name__: [above.__name__ for above in value.__mro__]
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Method) and value.__module__ == module.__name__
    }
    cls: type[Method] = getattr(module, class_of_file(name, methods))
    return cls


def described(settings: dict[str, Any]) -> Method:
    """Return the method that settings with a `name` describe. Lists, from YAML and JSON, become tuples.

    settings: have been checked.
    """
    values: Any = {key: tuple(v) if isinstance(v, list) else v for key, v in settings.items()}
    return find(values.pop("name"))(**values)


def classifying(methods: Sequence[Method], labels: Sequence[str], *, tagged: bool) -> list[Method]:
    """Return the methods, of which those that classify get these classes. If none does, a task head is added.

    tagged: every word has a class.
    """
    heads = [] if any(method.classifies() for method in methods) else [find("task_head")()]
    return [_of_classes(m, labels, tagged) if m.classifies() else m for m in [*methods, *heads]]


def _of_classes(head: Any, labels: Sequence[str], tagged: bool) -> Method:
    pool = {"pool": "none"} if tagged and getattr(head, "pool", None) == "auto" else {}
    classifier: Method = replace(head, num_labels=len(labels), labels=tuple(labels), **pool)
    return classifier


def names() -> list[str]:
    """Return the names of all methods: those of the files of `graft/methods`."""
    package = importlib.import_module("graft.methods")
    return sorted(
        info.name for info in pkgutil.iter_modules(package.__path__) if not info.name.startswith("_")
    )
