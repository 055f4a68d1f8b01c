"""Methods with one defect each: what the laws are there to catch."""

import random
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from graft.core.file_layout import FileLayout
from graft.core.insert import Insert
from graft.core.method import Method, No


class Scale(Insert):
    """y·(1 + g), the insert of a sound method, which the broken ones spoil."""

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
    """It hooks the module itself, and nobody takes the hook away."""

    def build(self, site):
        site.module.register_forward_hook(lambda module, args, output: None)
        return super().build(site)


class NotIdentity(Sound):
    """It is born with a gain of 1.1."""

    def build(self, site):
        insert = super().build(site)
        nn.init.constant_(insert.g, 0.1)
        return insert


class Blurring(Scale):
    """It mixes the mean over the rows into each."""

    def forward(self, x, y):
        return super().forward(x, y) + self.g.to(y.dtype) * y.mean(0, keepdim=True)


class IgnoresSpans(Sound):
    mergeable: ClassVar = No("its effect depends on the other rows")

    def build(self, site):
        return Blurring(site.out_features)


class Forgetful(Scale):
    """It trains two tensors and saves one."""

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
    """It thaws the weight that it sits on."""

    def build(self, site):
        if not getattr(site.module, "codes", None) is not None:
            site.module.weight.requires_grad_(True)
        return super().build(site)


class WronglyMerged(Scale):
    """It merges a gain of 1 + 2g."""

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
    """It is larger on a real base than on a planned one."""

    def build(self, site):
        return Wide(site.out_features, 0 if site.module.weight.is_meta else 8)


class Remembering(Scale):
    """It adds the sum over all tokens so far, which a forward with a filled cache does not see."""

    def forward(self, x, y):
        return super().forward(x, y) + self.g.to(y.dtype) * y.cumsum(1)


class LooksBack(Sound):
    mergeable: ClassVar = No("its effect depends on the tokens before")

    def build(self, site):
        return Remembering(site.out_features)


class HalfKept(Scale):
    """It draws a tensor at birth that its files hold and its checkpoints do not."""

    def __init__(self, width):
        super().__init__(width)
        self.register_buffer("slope", 0.5 + torch.rand(width), persistent=False)

    def forward(self, x, y):
        return y * (1 + (self.g * self.slope).to(y.dtype))

    def merge(self, weight, bias):
        factor = 1 + (self.g * self.slope).detach()
        return weight * factor[:, None], None if bias is None else bias * factor

    def saved(self):
        return {"g": self.g, "slope": self.slope}

    def load(self, tensors):
        with torch.no_grad():
            self.g.copy_(tensors["g"])
            self.slope.copy_(tensors["slope"])


class ChecksOutHalf(Sound):
    def build(self, site):
        return HalfKept(site.out_features)


class Counting(Scale):
    """In training it counts its forwards, on the module: a block that is recomputed in backward counts on."""

    calls = 0

    def forward(self, x, y):
        self.calls += self.training
        return y * (1 + (1 + self.calls) * self.g.to(y.dtype))


class CountsItsForwards(Sound):
    def build(self, site):
        return Counting(site.out_features)


class Unseen(Scale):
    """It does nothing where dynamo traces it."""

    def forward(self, x, y):
        return y if torch.compiler.is_compiling() else super().forward(x, y)


class LeavesWhenCompiled(Sound):
    def build(self, site):
        return Unseen(site.out_features)


@dataclass(frozen=True)
class NestsPairs(Sound):
    """JSON turns the pairs of its setting into lists."""

    pairs: tuple[tuple[int, int], ...] = ((1, 2),)  # of layers


class Marked(Scale):
    """It draws a number at birth that torch's seed does not decide."""

    def __init__(self, width):
        super().__init__(width)
        self.register_buffer("mark", torch.tensor(random.SystemRandom().random()))


class DrawsFromElsewhere(Sound):
    def build(self, site):
        return Marked(site.out_features)


class Widening(Scale):
    """It answers in its own dtype and not in that of y."""

    def forward(self, x, y):
        return y * (1 + self.g.double())


class WidensTheAnswer(Sound):
    """At the head, where nothing computes with the answer any more."""

    kinds: ClassVar = ("head",)
    newborn: ClassVar = No("the answer has another dtype from birth")

    def build(self, site):
        return Widening(site.out_features)


BROKEN: dict[type[Method], Any] = {
    LeaksAHook: "detach_leaves_no_trace",
    NotIdentity: "newborn_changes_nothing",
    IgnoresSpans: "mixed_equals_separate",
    ForgetsATensor: "saved_equals_loaded",
    TrainsTheBase: "only_inserts_receive_gradients",
    WrongMerge: "merged_equals_attached",
    WrongCount: "planned_equals_counted",
    LooksBack: "cached_equals_recomputed",
    ChecksOutHalf: "checkpoint_state_restores",
    CountsItsForwards: "checkpointing_changes_nothing",
    LeavesWhenCompiled: "compiled_equals_eager",
    NestsPairs: "config_survives_json",
    DrawsFromElsewhere: "seed_decides_everything",
    WidensTheAnswer: "outputs_keep_their_dtype",
}
