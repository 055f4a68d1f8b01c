"""The keys of a recipe's section as keywords of a function, with their types, defaults and help.

`graft.train(..., lr=1e-4)` takes the keys of `train:`. The tree says what they are, so the signature is made
from the tree, and a new key is a new keyword.
"""

import functools
import inspect
import textwrap
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, get_type_hints

from graft.core.by_name import alike, unknown_keyword
from graft.recipe.tree import Section, explain
from graft.recipe.words import SYNONYMS

F = TypeVar("F", bound=Callable[..., Any])
WIDTH = 100  # of the help in a docstring


def with_keywords(name: str, section: type[Section]) -> Callable[[F], F]:
    """Let the `**` of a function take the keys of a section alone, and show them.

    name: of the section.  Types and defaults of its keys are in the signature, their help in the docstring.
    Words of other trainers are let through: the recipe understands them.
    """

    def decorated(function: F) -> F:
        known = inspect.signature(function)
        own = [p for p in known.parameters.values() if p.kind is not p.VAR_KEYWORD]
        taken = {p.name for p in own}

        @functools.wraps(function)
        def call(*given: Any, **named: Any) -> Any:
            keys = {word: value for word, value in named.items() if word not in taken}
            require_keys(f"graft.{function.__name__}", section, keys)
            return function(*given, **named)

        shown = known.replace(parameters=[*own, *parameters(section)])
        setattr(call, "__signature__", shown)  # noqa: B010
        lines = [_wrapped(f"{key}: {explain()[f'{name}.{key}']}") for key in section.model_fields]
        call.__doc__ = "\n".join([(function.__doc__ or "").rstrip(), "", *lines, "    "])
        return call  # type: ignore[return-value]

    return decorated


def _wrapped(line: str) -> str:
    return textwrap.fill(line, WIDTH, initial_indent="    ", subsequent_indent="        ")


def parameters(section: type[Section]) -> list[inspect.Parameter]:
    """Return the keys of a section as parameters that are given by name."""
    kinds = get_type_hints(section)  # without the ranges, which the tree checks
    named = inspect.Parameter.KEYWORD_ONLY
    return [
        inspect.Parameter(
            key, named, default=field.get_default(call_default_factory=True), annotation=kinds[key]
        )
        for key, field in section.model_fields.items()
    ]


def require_keys(call: str, section: type[Section], given: Mapping[str, Any]) -> None:
    """Raise UsageError for a keyword that is no key of a section, nor another trainer's word for a key.

    call: as the user writes it.
    """
    known = list(section.model_fields)
    for word, value in given.items():
        if word not in known and word not in SYNONYMS:
            elsewhere = [_written(key, word) for key in explain() if key.rpartition(".")[2] == word]
            raise unknown_keyword(call, word, value, elsewhere[:1] or alike(word, known), known)


def _written(key: str, word: str) -> str:
    """Return how a key outside the section is written in Python."""
    section = key.rpartition(".")[0]
    if section == "data":
        return f'data={{"train": ..., "{word}": ...}}'
    return f'{section}={{"{word}": ...}}' if section else f"{word}= of graft.load"
