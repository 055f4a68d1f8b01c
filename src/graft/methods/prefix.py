"""Prefix tuning: trained keys and values that every query of every attention layer sees.

    softmax(q [P_K; K]ᵀ/√d_h) [P_V; V]        P_K, P_V (p, H_kv, d_h) of each layer
    with prefix_projection:  [P_K, P_V of all layers] = W₂ tanh(W₁E + b₁) + b₂        E (p, H_kv·d_h), W₁ to m

Li & Liang 2021 (2101.00190); without the projection and with a task head this is P-tuning v2 (2110.07602).
The projection steadies training; it is dropped when the adapter is saved. Keys are stored as attention uses
them, after the rotation of RoPE. On encoder-decoders all three attentions of a layer get a prefix of their
own.
Differs: keys and values are added inside attention and are never in the cache, so gradient checkpointing and
beams keep them. PEFT's files for encoder-decoders are refused: PEFT gives several layers of a decoder one
prefix.
"""

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from graft.core.file_layout import FileLayout
from graft.core.insert import KeyValues
from graft.core.method import Method, No
from graft.core.part import Part, Seats
from graft.core.schema import Count
from graft.core.site import Site
from graft.errors import SiteError, listed, notice
from graft.layers.soft_prompt import KEY, SHAPES, check_room

Shape = tuple[int, int, int, int]  # (p, 2, H_kv, d_h)


class PrefixFiles(FileLayout):
    """What is saved is the product of the projection, so files name none."""

    def describe(self, method: Any, part: Part) -> dict[str, Any]:
        return super().describe(method, part) | {"prefix_projection": False, "num_transformer_submodules": 1}

    def understand(self, cls: Any, settings: dict[str, Any]) -> Any:
        return cls(**{**settings, "prefix_projection": False})


@dataclass(frozen=True, kw_only=True)
class PrefixTuning(Method):
    num_virtual_tokens: Count = 30  # p: keys and values added in every layer
    prefix_projection: bool = False  # train the prefix through an MLP, which steadies training
    encoder_hidden_size: Count = 512  # m: width of that MLP
    shift_positions: bool = True  # the text's positions begin at p, as in PEFT; false: at 0

    kinds: ClassVar = ("kv",)
    files: ClassVar = PrefixFiles(
        "PREFIX_TUNING",
        own=frozenset({"shift_positions"}),
        idle=SHAPES,
        refused=frozenset({"modules_to_save"}),
        beside_model=True,
    )
    newborn: ClassVar = No("a key draws attention away from the text, whatever its value")
    mergeable: ClassVar = No("no weight has the effect of further keys; export it as an adapter")

    def assemble(self, sites: Sequence[Site]) -> Seats:
        places, config = self.targets(sites), sites[0].root.config
        if not places:
            raise SiteError(
                "keys and values can be added to no attention of this model: it has none, it does not use "
                "transformers' attention interface, or its keys and values have not one width",
                "attention that takes further keys and values",
                "use LoRA or prompt tuning",
            )
        check_room(self.num_virtual_tokens, config)
        _say_gaps(places, sites)
        inserts = self._inserts([(self.num_virtual_tokens, 2, *_shape(site)) for site in places])
        inserts[0].layers = tuple(inserts)
        if self.shift_positions and not config.is_encoder_decoder:
            inserts[0].ahead = self.num_virtual_tokens
        return list(zip(places, inserts, strict=True))

    def _inserts(self, shapes: list[Shape]) -> list["Prefix"]:
        if not self.prefix_projection:
            return [Table(shape) for shape in shapes]
        shared = Shared(shapes[0], self.encoder_hidden_size)
        return [Projected(shape, shared, owner=layer == 0) for layer, shape in enumerate(shapes)]


def _shape(site: Site) -> tuple[int, int]:
    """Return (H_kv, d_h) of an attention: as a forward showed them, or as the configuration says."""
    if site.shape is not None:
        return site.shape
    text = site.root.config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or getattr(text, "d_kv", None)
    return heads, width or text.hidden_size // text.num_attention_heads


def _say_gaps(places: Sequence[Site], sites: Sequence[Site]) -> None:
    """Give a notice of the blocks in which no attention takes keys and values."""
    taking = {id(site.module) for site in places}
    blocks = [site for site in sites if site.kind == "block"]
    bare = [b.name for b in blocks if not any(id(module) in taking for module in b.module.modules())]
    if bare:
        notice(
            f"prefix: {len(bare)} of {len(blocks)} blocks have no attention that takes further keys and "
            f"values ({listed(bare)}): the prefix does not reach them"
        )


class Prefix(KeyValues):
    """P_K and P_V of one layer.  shape: (p, 2, H_kv, d_h).

    layers: the inserts of all layers; only the first has them, and saves and loads all.
    """

    layers: tuple["Prefix", ...] = ()

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape

    @abstractmethod
    def flat(self) -> torch.Tensor:
        """Return keys and values as in the file, (p, 2·H_kv·d_h)."""

    @abstractmethod
    def take(self, flat: torch.Tensor) -> None:
        """Take keys and values that `flat` returned."""

    def keys_values(self) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = self.flat().view(self.shape).permute(1, 2, 0, 3)
        return keys, values

    def saved(self) -> dict[str, torch.Tensor]:
        return {KEY: torch.cat([layer.flat() for layer in self.layers], 1).detach()} if self.layers else {}

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        sizes = [math.prod(layer.shape[1:]) for layer in self.layers]
        parts = tensors[KEY].split(sizes, 1) if tensors else ()
        for layer, part in zip(self.layers, parts, strict=True):
            layer.take(part)


class Table(Prefix):
    """A prefix that is trained as it is."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self.table = nn.Parameter(torch.randn(shape[0], math.prod(shape[1:])))

    def flat(self) -> torch.Tensor:
        return self.table

    def take(self, flat: torch.Tensor) -> None:
        with torch.no_grad():
            self.table.copy_(flat)


class Shared(nn.Module):
    """tanh(W₁E + b₁), which the projections of all layers share."""

    def __init__(self, shape: Shape, hidden: int) -> None:
        super().__init__()
        p, _, heads, width = shape
        self.E = nn.Parameter(torch.randn(p, heads * width))
        self.W1 = nn.Linear(heads * width, hidden)

    def forward(self) -> torch.Tensor:
        return torch.tanh(self.W1(self.E))


class Projected(Prefix):
    """A layer's part of W₂, applied to the shared part.

    owner: it keeps the shared part; the others borrow it.
    """

    loaded: torch.Tensor | None = None  # keys and values of a file, which replace the projection

    def __init__(self, shape: Shape, shared: Shared, *, owner: bool) -> None:
        super().__init__(shape)
        self.W2 = nn.Linear(shared.W1.out_features, math.prod(shape[1:]))
        self._borrowed = (shared,)  # in a tuple torch does not see it: checkpoints hold it once
        if owner:
            self.owned = shared

    def flat(self) -> torch.Tensor:
        return self.W2(self._borrowed[0]()) if self.loaded is None else self.loaded

    def take(self, flat: torch.Tensor) -> None:
        self.loaded = flat.to(self.W2.weight)
