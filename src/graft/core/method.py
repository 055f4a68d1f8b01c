"""Method: a paper as a frozen dataclass of hyper-parameters, which builds an Insert for each of its sites.

A method is one file in `graft/methods`, named as users name it. No other file knows it: the training loop,
the saver and the planner call the methods below without asking which class it is, and the defaults do
nothing.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from typing import Any, ClassVar, Self

import torch

from graft.core.by_name import require_named
from graft.core.card_text import CardDoc
from graft.core.file_layout import FileLayout
from graft.core.insert import AdapterModule
from graft.core.part import Part, Seats
from graft.core.schema import Rate, misfits, schema_of, shown
from graft.core.site import Site
from graft.errors import SiteError, UsageError


class No:
    """A declaration that a method cannot do something, with the reason. As a condition it is False.

    unless: settings with which the method can do it after all. An instance with these settings has True
    instead.
    """

    def __init__(self, reason: str, *, unless: Mapping[str, Any] | None = None) -> None:
        self.reason, self.unless = reason, unless or {}

    def __get__(self, method: Any, cls: type) -> "bool | No":
        met = method is not None and bool(self.unless)
        return True if met and all(getattr(method, k) == v for k, v in self.unless.items()) else self

    def __bool__(self) -> bool:
        return False

    def __str__(self) -> str:
        return self.reason


def require_fitting(method: "Method") -> None:
    """Raise UsageError if a setting has another type than its field, or is out of its range."""
    given = {field.name: getattr(method, field.name) for field in fields(method)}
    cls: Any = type(method)
    wrong = misfits(schema_of(cls), given)
    if wrong:
        raise UsageError(
            ", ".join(f"{name}={shown(given[name])}" for name in wrong),
            "; ".join(f"{name}: {kind}" for name, kind in wrong.items()),
            f"see `graft methods {method.name()}`",
        )


def _is_usual(method: "Method", one: "Field[Any]") -> bool:
    """Return whether a setting has its default."""
    usual = one.default if one.default_factory is MISSING else one.default_factory()
    return bool(getattr(method, one.name) == usual)


def _after_the_schema(own: Callable[[Any], None]) -> Callable[[Any], None]:
    @functools.wraps(own)
    def checked(method: Any) -> None:
        require_fitting(method)
        own(method)

    return checked


@dataclass(frozen=True, kw_only=True)
class Method:
    """Base class of every method's configuration. An ability is True, or No with a reason.

    Settings are given by name. A wrong name, a value without a name and a value out of its range raise
    UsageError.
    """

    # Its own peak learning rate; if left out, train.lr
    lr: Rate | None = None

    kinds: ClassVar[tuple[str, ...]] = ("linear",)  # kinds of sites that it can go to
    files: ClassVar[FileLayout] = FileLayout()
    routable: ClassVar[bool | No] = True  # rows of one batch may use different adapters
    quantisable: ClassVar[bool | No] = True  # it works on packed weights
    mergeable: ClassVar[bool | No] = True  # its effect can be folded into the base
    newborn: ClassVar[bool | No] = True  # a fresh adapter changes nothing
    packable: ClassVar[bool | No] = True  # documents may share a row
    cacheable: ClassVar[bool | No] = True  # text can be generated with a cache of keys and values
    in_place: ClassVar[bool] = False  # it trains the base's own tensors and is used alone
    word_head: ClassVar[bool] = False  # it classifies by what a masked model's language head makes of a state
    passes: ClassVar[int] = 1  # forwards per micro-batch; their losses go to `extra_loss`

    def __init_subclass__(cls, **keywords: Any) -> None:
        """Let the settings be checked by their types before the class's own checks compute with them.

        A class of graft/methods gets its card as docstring. That and `repr` are put in place here, because
        dataclass keeps what it finds.
        """
        super().__init_subclass__(**keywords)
        own = cls.__dict__.get("__post_init__")
        if own is not None:
            setattr(cls, "__post_init__", _after_the_schema(own))  # noqa: B010
        if "__repr__" not in cls.__dict__:
            setattr(cls, "__repr__", Method.__repr__)  # noqa: B010
        if cls.__doc__ is None and cls.__module__.startswith("graft.methods."):
            setattr(cls, "__doc__", CardDoc(cls.name()))  # noqa: B010

    def __new__(cls, *given: Any, **named: Any) -> Self:
        """Refuse what is not a setting given by name."""
        require_named(cls, given, named)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        require_fitting(self)

    def __repr__(self) -> str:
        """Return the call that makes it: the settings that are not as usual."""
        changed = [f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if not _is_usual(self, f)]
        return f"{type(self).__name__}({', '.join(changed)})"

    @classmethod
    def name(cls) -> str:
        """Return the name that users write: the name of the file."""
        return cls.__module__.rsplit(".", 1)[-1]

    @classmethod
    def is_head(cls) -> bool:
        """Return whether it is a task head and nothing else, which is saved as PEFT saves its heads."""
        return cls.kinds == ("final",)

    @classmethod
    def classifies(cls) -> bool:
        """Return whether it answers with classes; it then has `num_labels`, `labels` and `every_token`."""
        return "final" in cls.kinds

    def targets(self, sites: Sequence[Site]) -> list[Site]:
        """Return the sites that this method goes to, among all sites of a model."""
        return [site for site in sites if site.kind in self.kinds]

    def build(self, site: Site) -> AdapterModule:
        """Return the insert for one site. A method overrides this or `assemble`."""
        raise SiteError(f"{self.name()} builds nothing for one site alone", "`assemble`", "use Base.attach")

    def assemble(self, sites: Sequence[Site]) -> Seats:
        """Return all (site, insert) pairs in order.

        A method overrides this if its inserts share modules, or if a site gets several.
        """
        return [(site, self.build(site)) for site in self.targets(sites)]

    def param_groups(self, part: Part, lr: float) -> list[dict[str, Any]]:
        """Return optimizer groups {"params": [...], "lr": ...}, some of them with "weight_decay": 0.0."""
        decayed = [p for p in part.parameters() if p.ndim > 1]
        plain = [p for p in part.parameters() if p.ndim <= 1]  # biases, norms, magnitudes: no decay
        groups = [{"params": decayed, "lr": lr}, {"params": plain, "lr": lr, "weight_decay": 0.0}]
        return [group for group in groups if group["params"]]

    def consistency_weight(self) -> float:
        """Return the weight of the symmetric KL between the predictions of two passes."""
        return 0.0

    def extra_loss(self, part: Part, outputs: Sequence[torch.Tensor]) -> torch.Tensor | None:
        """Return a term to add to the loss of a micro-batch, given the losses of its passes."""
        return None

    def after_step(self, part: Part, step: int, total: int) -> None:
        """Act after an optimizer step, while its gradients still exist: prune ranks, follow a schedule."""

    def notice(self, part: Part) -> str | None:
        """Return a warning to show before training if the adapter differs from what the settings suggest."""
        return None

    def config(self) -> dict[str, Any]:
        """Return the hyper-parameters as JSON values."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: list(v) if isinstance(v, tuple | set | frozenset) else v for name, v in values.items()}
