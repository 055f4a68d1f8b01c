"""Method: a paper as a frozen dataclass of hyper-parameters, which builds an Insert for each of its sites.

A method is one file in `graft/methods`, named as users name it. Nothing else knows it: the loop, the saver and the
planner call the doors below blindly, and their defaults do nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import torch

from graft.core.file_layout import FileLayout
from graft.core.insert import Insert
from graft.core.part import Part
from graft.core.site import Site
from graft.errors import SiteError


class No:
    """A declaration that something is not possible, with the reason. False in a condition."""

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def __bool__(self) -> bool:
        return False

    def __str__(self) -> str:
        return self.reason


@dataclass(frozen=True)
class Method:
    """Base class of every method's configuration.

    Declarations (True, or No with a reason): `routable` rows of one batch may use different adapters; `quantisable`
    works on packed weights; `mergeable` the effect can be folded into the base; `newborn` a fresh adapter changes
    nothing; `packable` documents may share a row; `cacheable` text can be generated with a cache of keys and values.
    `in_place` methods train the base's own tensors and are used one at a time.
    """

    lr: float | None = field(
        default=None, kw_only=True
    )  # its own peak learning rate; train.lr where left out

    kinds: ClassVar[tuple[str, ...]] = ("linear",)  # kinds of sites it can be put at
    files: ClassVar[FileLayout] = FileLayout()
    routable: ClassVar[bool | No] = True
    quantisable: ClassVar[bool | No] = True
    mergeable: ClassVar[bool | No] = True
    newborn: ClassVar[bool | No] = True
    packable: ClassVar[bool | No] = True
    cacheable: ClassVar[bool | No] = True
    in_place: ClassVar[bool] = False
    word_head: ClassVar[bool] = False  # reads through a masked model's language head, also as a classifier
    passes: ClassVar[int] = 1  # forwards per micro-batch; their outputs go to `extra_loss`
    consistency: ClassVar[float] = 0.0  # weight of the symmetric KL between the predictions of two passes

    @classmethod
    def name(cls) -> str:
        """The name users write: that of the file."""
        return cls.__module__.rsplit(".", 1)[-1]

    @classmethod
    def is_head(cls) -> bool:
        """True for task heads, which sit behind the base and are saved as PEFT saves them."""
        return cls.kinds == ("final",)

    @classmethod
    def classifies(cls) -> bool:
        """True for methods that answer with classes: they have the fields `num_labels` and `labels`."""
        return "final" in cls.kinds

    @property
    def every_token(self) -> bool:
        """Of a classifier: whether every token gets a class, not the row."""
        return False

    def targets(self, sites: Sequence[Site]) -> list[Site]:
        """The sites this method goes to, among all of a model."""
        return [site for site in sites if site.kind in self.kinds]

    def build(self, site: Site) -> Insert:
        """The insert for one site."""
        raise SiteError(
            f"{type(self).__name__} builds no insert for one site alone",
            "a call of `assemble`",
            "use Base.attach",
        )

    def assemble(self, sites: Sequence[Site]) -> list[tuple[Site, Insert]]:
        """All (site, insert) pairs, in order; overridden where inserts share modules or a site gets several."""
        return [(site, self.build(site)) for site in self.targets(sites)]

    def param_groups(self, part: Part, lr: float) -> list[dict[str, Any]]:
        """Optimizer groups: {"params": [...], "lr": ..., and "weight_decay": 0.0 where none shall apply}."""
        decayed = [p for p in part.parameters() if p.ndim > 1]
        plain = [p for p in part.parameters() if p.ndim <= 1]  # biases, norms, magnitudes: no decay
        groups: list[dict[str, Any]] = [
            {"params": decayed, "lr": lr},
            {"params": plain, "lr": lr, "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]

    def extra_loss(self, part: Part, outputs: Sequence[torch.Tensor]) -> torch.Tensor | None:
        """A term added to the loss of a micro-batch, from the losses of its passes."""
        return None

    def after_step(self, part: Part, step: int, total: int) -> None:
        """Called after every optimizer step, while its gradients are there (rank pruning, the method's schedules)."""

    def notice(self, part: Part) -> str | None:
        """What the user shall know of this adapter before it is trained, where it is not what the settings suggest."""
        return None

    def config(self) -> dict[str, Any]:
        """Hyper-parameters as JSON values."""
        return {f.name: _json(getattr(self, f.name)) for f in fields(self)}


def _json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple | set | frozenset) else value
