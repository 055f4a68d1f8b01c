"""Methods with one defect each: what the laws are there to catch."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from graft.core.file_layout import FileLayout
from graft.core.insert import Insert
from graft.core.method import Method, No


class Scale(Insert):
    """y·(1 + g): a sound method in three lines, which the broken ones spoil."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.zeros(width))

    def forward(self, x, y):
        return y * (1 + self.g.to(y.dtype))

    def merge(self, weight, bias):
        factor = 1 + self.g.detach()
        return weight * factor[:, None], None if bias is None else bias * factor


@dataclass(frozen=True)
class Sound(Method):
    files: ClassVar = FileLayout("SOUND")

    def build(self, site):
        return Scale(site.out_features)


class LeaksAHook(Sound):
    def build(self, site):
        site.module.register_forward_hook(lambda module, args, output: None)
        return super().build(site)


class NotIdentity(Sound):
    def build(self, site):
        insert = super().build(site)
        nn.init.constant_(insert.g, 0.1)
        return insert


class Blurring(Scale):
    def forward(self, x, y):
        return super().forward(x, y) + self.g.to(y.dtype) * y.mean(0, keepdim=True)


class IgnoresSpans(Sound):
    mergeable: ClassVar = No("its effect depends on the other rows")

    def build(self, site):
        return Blurring(site.out_features)


class Forgetful(Scale):
    def __init__(self, width):
        super().__init__(width)
        self.shift = nn.Parameter(torch.zeros(width))

    def forward(self, x, y):
        return super().forward(x, y) + self.shift.to(y.dtype)

    def merge(self, weight, bias):
        weight, bias = super().merge(weight, bias)
        return weight, self.shift.detach() if bias is None else bias + self.shift.detach()

    def saved(self):
        return {"g": self.g}


class ForgetsATensor(Sound):
    def build(self, site):
        return Forgetful(site.out_features)


class TrainsTheBase(Sound):
    def build(self, site):
        if not getattr(site.module, "codes", None) is not None:
            site.module.weight.requires_grad_(True)
        return super().build(site)


class WronglyMerged(Scale):
    def merge(self, weight, bias):
        return weight * (1 + 2 * self.g.detach())[:, None], bias


class WrongMerge(Sound):
    def build(self, site):
        return WronglyMerged(site.out_features)


class Wide(Scale):
    def __init__(self, width: int, extra: int) -> None:
        super().__init__(width)
        self.extra = nn.Parameter(torch.zeros(extra))


class WrongCount(Sound):
    def build(self, site):
        return Wide(site.out_features, 0 if site.module.weight.is_meta else 8)


class Remembering(Scale):
    def forward(self, x, y):
        return super().forward(x, y) + self.g.to(y.dtype) * y.cumsum(1)


class LooksBack(Sound):
    mergeable: ClassVar = No("its effect depends on the tokens before")

    def build(self, site):
        return Remembering(site.out_features)


BROKEN: dict[type[Method], Any] = {
    LeaksAHook: "detach_leaves_no_trace",
    NotIdentity: "newborn_changes_nothing",
    IgnoresSpans: "mixed_equals_separate",
    ForgetsATensor: "saved_equals_loaded",
    TrainsTheBase: "only_inserts_receive_gradients",
    WrongMerge: "merged_equals_attached",
    WrongCount: "planned_equals_counted",
    LooksBack: "cached_equals_recomputed",
}
