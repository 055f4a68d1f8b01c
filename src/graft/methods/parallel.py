"""Parallel adapters: a bottleneck beside the feed-forward network, reading what it reads.

    FFN'(x) = FFN(x) + s·drop(W_up φ(W_down x + b_down) + b_up)        W_down (m, d), W_up (d, m);  φ ReLU

x is the input of the network's first projection, behind the norm on pre-norm models. s = 4, or learned: `par_bn` and
`scaled_par_bn` of the `adapters` library. W_down Kaiming-uniform, W_up = 0 at birth. L(2dm + m + d) numbers: 7,091,712
on BERT-base with m = 384. He et al. 2021 (2110.04366). mh_adapter=true puts one beside self-attention as well.
"""

from dataclasses import dataclass
from typing import ClassVar

from graft.errors import UsageError
from graft.methods._bottleneck import Dense


@dataclass(frozen=True)
class Parallel(Dense):
    reduction_factor: float | dict[str, float] = 2  # d / m; or by number of the block, {"0": 8, "default": 16}
    scaling: float | str = 4.0  # s: a number, or trained from 1 on: learned (one), channel (one per output)

    peft_type: ClassVar = "GRAFT_PARALLEL"
    parallel: ClassVar = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.original_ln_before:
            raise UsageError("original_ln_before=true", "false: it reads what the sublayer reads", "leave it out")
