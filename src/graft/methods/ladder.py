"""Ladder-side tuning (LST): a narrow transformer next to the frozen base reads its states and answers for it.

    s_0 = D_0 drop(h_0)        s_l = Block_l(g_l s_{l-1} + (1 - g_l) D_l h_l)        g_l = σ(a_l / T)
    last hidden state = U N(s_last)
    h_l (d,) state after block l, h_0 the embeddings, both without gradient
    D_l (d/R, d), U (d, d/R) with biases
    Block_l, N: blocks and last norm of the base's own classes, every width divided by R;  a_l = 0 at birth

Sung, Cho and Bansal 2022 (2206.06522). Nothing upstream is trained, so autograd keeps nothing of the base but
the h_l that D_l needs, and backward never enters it. The side network's keys and values follow the base's in
the cache. An encoder-decoder has two side stacks; the side decoder attends to the side encoder.
Differs: pruning goes by the magnitude of weights, not by Fisher information on data; D_l and U start as the
choice of the dimensions that pruning kept (random in the official code).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import nn

from graft.core.file_layout import FileLayout
from graft.core.method import Method, No
from graft.core.part import Part, Seats
from graft.core.schema import Count, Numbers, Positive, Share
from graft.core.site import Site
from graft.errors import UsageError, one_of
from graft.layers.narrow_stack import Narrow, Projection
from graft.layers.pruning import pruned
from graft.layers.taps import Tap, stacks

GIVEN = ("attention_mask", "position_ids", "encoder_attention_mask")


class LadderFiles(FileLayout):
    """How a side network starts is in its tensors."""

    def understand(self, cls: Any, settings: dict[str, Any]) -> Any:
        return cls(**{**settings, "init": "random"})


@dataclass(frozen=True, kw_only=True)
class Ladder(Method):
    reduction_factor: Count = 8  # R: width of the base over that of the side network
    layers: Numbers = ()  # blocks with a side block, of each stack; none given: all of them
    gate_T: Positive = 0.1  # temperature of the gates: the smaller, the faster they open and close
    dropout: Share = 0.0  # dropout on the embeddings that enter the side network
    init: str = "prune"  # "prune": the largest weights of the base; "random": as the blocks' class draws them

    kinds: ClassVar = ("block", "stack")
    files: ClassVar = LadderFiles("GRAFT_LADDER")
    newborn: ClassVar = No("the side network answers, not the base")
    mergeable: ClassVar = No("the side network stays outside the base")

    def __post_init__(self) -> None:
        one_of("init", self.init, ("prune", "random"))

    def assemble(self, sites: Sequence[Site]) -> Seats:
        places = [(stack, blocks, self._chosen(blocks)) for stack, blocks in stacks(sites)]
        nets = [Narrow(stack, chosen, self.reduction_factor) for stack, _, chosen in places]
        shape = nets[0].width, places[0][0].module.config.hidden_size
        start = None
        if self.init == "prune":
            start = pruned(nets, [(stack, chosen) for stack, _, chosen in places], sites)
        seats: Seats = []
        encoder = None
        for net, (stack, blocks, chosen) in zip(nets, places, strict=True):
            foot, rungs = Foot(shape, start, self.dropout), [Rung(shape, start) for _ in chosen]
            up = Projection(*shape, None if start is None else start.T) if net is nets[-1] else None
            encoder = Side(net, [foot, *rungs], up, self.gate_T, encoder)
            seats += [(blocks[0], foot), *zip(chosen, rungs, strict=True), (stack, encoder)]
        return seats

    def _chosen(self, blocks: Sequence[Site]) -> list[Site]:
        wrong = [layer for layer in self.layers if not 0 <= layer < len(blocks)]
        if wrong or list(self.layers) != sorted(set(self.layers)):
            given = f"layers={list(self.layers)}"
            raise UsageError(
                given, f"rising numbers from 0 to {len(blocks) - 1}", "leave it out for all blocks"
            )
        return [blocks[layer] for layer in self.layers] or list(blocks)

    def notice(self, part: Part) -> str | None:
        """Return a warning if the width of a head does not divide by R."""
        _, rung = part.of(Rung)[0]
        narrow, wide = rung.down.weight.shape
        if narrow * self.reduction_factor == wide:
            return None
        fraction = f"{wide}/{self.reduction_factor}"
        return f"the side network is {narrow} wide, not {fraction}: heads need whole, even widths"


class Rung(Tap):
    """Leaves D h of the state after its block for the side network. shape: of D."""

    def __init__(self, shape: tuple[int, int], start: torch.Tensor | None) -> None:
        super().__init__()
        self.down = Projection(shape[1], shape[0], start)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        self.leave(self.down(y.detach()))
        return y


class Foot(Rung):
    """Leaves s_0, from what enters the first block."""

    # Names of its own: the first block may have a rung, too.
    names: ClassVar = {"down.weight": "foot.weight", "down.bias": "foot.bias"}

    def __init__(self, shape: tuple[int, int], start: torch.Tensor | None, dropout: float) -> None:
        super().__init__(shape, start)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        self.leave(self.down(self.dropout(x.detach())))
        return y


class Side(Tap):
    """At a stack: runs the side blocks on what the rungs left.

    up: None at an encoder: a side decoder reads its side states, and the base's decoder reads the base's.
    encoder: the Side of that encoder, for a decoder.
    """

    def __init__(
        self, net: Narrow, rungs: Sequence[Rung], up: Projection | None, T: float, encoder: "Side | None"
    ) -> None:
        super().__init__()
        self.net = net
        self.up = up
        self.T = T
        self.gates = nn.Parameter(torch.zeros(len(rungs) - 1))
        self.rungs = tuple(rungs)  # in tuples they are no modules of this one: each is an insert of its own
        self.encoder = () if encoder is None else (encoder,)
        for index, block in enumerate(net.blocks):
            block.register_forward_pre_hook(partial(self._mix, index), with_kwargs=True)

    def forward(self, x: Any, y: torch.Tensor) -> torch.Tensor:
        given = {name: x[name] for name in GIVEN if name in x}
        for side in self.encoder:
            states = side.left()
            given["encoder_hidden_states"] = states.repeat_interleave(len(y) // len(states), 0)  # beams
        last = self.net(self.rungs[0].left(), self.cache(), **given)
        if self.up is None:
            self.leave(last)
            return y
        answer: torch.Tensor = self.up(last)
        return answer

    def _mix(self, index: int, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return what enters a side block.

        The first one reads s_0 itself, whatever a stack does to embeddings.
        """
        states = args[0] if index else self.rungs[0].left()
        gate = (self.gates[index] / self.T).sigmoid().to(states.dtype)
        return (gate * states + (1 - gate) * self.rungs[index + 1].left(), *args[1:]), kwargs
