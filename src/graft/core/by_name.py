"""Answer calls with wrong names: the nearest name is told, where Python would raise a bare TypeError.

LoRA(rank=4)                          did you mean r or rank_pattern?
LoRA(16)                              settings are given by name: LoRA(r=16)
graft.export(base, "out", too="hf")   did you mean to?
"""

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from graft.core.cards import cards
from graft.core.schema import fits, schema_of, shown
from graft.errors import UsageError, listed

F = TypeVar("F", bound=Callable[..., Any])
LIKE = 0.5  # a name that is less alike is no suggestion
SPREAD = 0.2  # nor is one that is so much less alike than the best
TARGETS = "target_modules"


def answered(function: F) -> F:
    """Let a call with wrong arguments raise UsageError, in the words of the caller.

    A function with keywords of any name (`**`) checks these itself.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*given: Any, **named: Any) -> Any:
        try:
            signature.bind(*given, **named)
        except TypeError as error:
            raise _misfit(function.__name__, signature, named, str(error)) from None
        return function(*given, **named)

    return call  # type: ignore[return-value]


def _misfit(name: str, signature: inspect.Signature, named: Mapping[str, Any], text: str) -> UsageError:
    known = signature.parameters
    unknown = [word for word in named if word not in known]
    if unknown and not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values()):
        return unknown_keyword(
            f"graft.{name}", unknown[0], named[unknown[0]], alike(unknown[0], known), known
        )
    required = [p.name for p in known.values() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    return UsageError(
        f"graft.{name}: {text}", f"graft.{name}({', '.join([*required, '...'])})", f"see help(graft.{name})"
    )


def unknown_keyword(
    call: str, word: str, value: object, close: Sequence[str], known: Iterable[str]
) -> UsageError:
    """Return the error of a keyword that a call does not have.  close: those that may be meant."""
    remedy = f"did you mean {' or '.join(close)}?" if close else f"see help({call})"
    return UsageError(f"{call}({word}={shown(value)}): unknown keyword", listed(known, 40), remedy)


def alike(word: str, known: Iterable[str]) -> list[str]:
    """Return up to three names that look like a word, the best first; none if none does.

    >>> alike("alpha", ["r", "alpha_pattern", "lora_alpha"])  # the last word of a name says what it is
    ['lora_alpha', 'alpha_pattern']
    """
    likeness = {name: difflib.SequenceMatcher(None, name, word).ratio() for name in known}
    best = max(likeness.values(), default=0)
    close = [name for name, like in likeness.items() if like >= max(LIKE, best - SPREAD)]
    return sorted(close, key=lambda name: (not name.endswith(f"_{word}"), -likeness[name]))[:3]


def require_named(cls: type, given: Sequence[Any], named: Mapping[str, Any]) -> None:
    """Raise UsageError for values without a name and for names that are no settings of a class.

    What its `__init__` takes is let through: a class of the user's own may take more.
    """
    name, known = cls.__name__, _parameters(cls)
    kinds = {parameter.kind for parameter in known.values()}
    if given and kinds <= {inspect.Parameter.KEYWORD_ONLY}:
        raise UsageError(
            f"{name}({', '.join(map(shown, given))})",
            "every setting with its name",
            f"settings are given by name: {name}({_meant(cls, given[0])}={shown(given[0])})",
        )
    unknown = [] if inspect.Parameter.VAR_KEYWORD in kinds else [word for word in named if word not in known]
    for word in unknown:
        close = list(dict.fromkeys([*_by_help(cls, word), *alike(word, known)]))
        close = sorted(close, key=lambda one: not one.endswith(f"_{word}"))[:3]
        raise unknown_keyword(name, word, named[word], close, sorted(known, key=lambda one: one == "lr"))


@functools.lru_cache(maxsize=256)
def _parameters(cls: Any) -> dict[str, inspect.Parameter]:
    """Return what a class is made with, without `self`."""
    return dict(list(inspect.signature(cls.__init__).parameters.items())[1:])


def _meant(cls: type, value: object) -> str:
    """Return the setting that a value without a name is likely to be for: of the class's own, if one fits."""
    kinds = schema_of(cls)
    own = [name for name in kinds if name in inspect.get_annotations(cls)]
    names = [*own, *(name for name in kinds if name not in own)]
    if not isinstance(value, int | float) and TARGETS in names:
        names.insert(0, TARGETS)
    return next((name for name in names if fits(value, kinds[name])), names[0])


def _by_help(cls: type, word: str) -> list[str]:
    """Return the settings whose help begins with a word: `rank` is the first one of r."""
    card = next((card for card in cards().values() if card.cls == cls.__name__), None)
    settings = card.settings.values() if card is not None else ()
    return [s.name for s in settings if s.help.lower().split(" ")[0] == word.lower()]


def require_base(call: str, base: object) -> None:
    """Raise UsageError for what is no base, such as a path or a model of transformers."""
    if not hasattr(base, "adapters") or not hasattr(base, "attach"):
        remedy = (
            "give it graft.load(...)"
            if isinstance(base, str)
            else "give it graft.load(...) or graft.Base(model)"
        )
        raise UsageError(f"{call} was given {base!r:.60} as its base", "a Base", remedy)
