"""Parallel adapters: a bottleneck parallel to the feed-forward network, reading what it reads.

    FFN'(x) = FFN(x) + s·drop(W_up φ(W_down x + b_down) + b_up)        W_down (m, d), W_up (d, m);  φ ReLU

x is the input of the network's first projection, after the norm on pre-norm models. s = 4, or learned. W_down
Kaiming-uniform, W_up = 0 at birth. L(2dm + m + d) numbers: 7,091,712 on BERT-base with m = 384. He et al.
2021 (2110.04366). mh_adapter=true puts one parallel to self-attention as well. The `adapters` library has
this as `par_bn` and `scaled_par_bn`; on pre-norm models its x is the residual, not normed, so files of such
models are refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from graft.core.schema import Positive, Scale
from graft.core.site import Site
from graft.errors import AdapterError, UsageError
from graft.layers.bottleneck import Dense
from graft.layers.sublayers import PlacedFiles, post_norm


class ParallelFiles(PlacedFiles):
    """On a pre-norm base the library's adapter reads the residual, which this one does not."""

    def understand_library(self, cls: Any, settings: dict[str, Any], sites: Sequence[Site]) -> Any:
        if not post_norm(sites):
            raise AdapterError(
                "a parallel adapter of the `adapters` library, which reads the residual on a pre-norm base",
                "one of a post-norm base such as BERT",
                "load it with that library",
            )
        return super().understand_library(cls, settings, sites)


@dataclass(frozen=True, kw_only=True)
class Parallel(Dense):
    # d / m; or by number of the block, {"0": 8, "default": 16}
    reduction_factor: Positive | dict[str, Positive] = 2
    scaling: Scale | str = 4.0  # s: a number, or trained from 1 on: learned (one), channel (one per output)

    files: ClassVar = ParallelFiles("GRAFT_PARALLEL", library_marks={"is_parallel": True, "phm_layer": False})
    parallel: ClassVar = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.original_ln_before:
            raise UsageError(
                "original_ln_before=true", "false: it reads what the sublayer reads", "leave it out"
            )
