"""Keys and values that adapters add to attention, through transformers' own registries.

    softmax(q [P_K; K]ᵀ/√d) [P_V; V]        P_K, P_V (heads, p, width): every query of their rows sees them;
                                            they are never cached

For each implementation that a model may have, one wrapper is registered, in both registries: a name in only
one silently gets no mask. The wrapper finds its inserts by the attention module that calls it.
"""

import contextlib
import sys
import threading
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.nn import functional as F
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from graft.base import fast_attention
from graft.base.host import Host
from graft.core.insert import KeyValues
from graft.core.route import Route, current
from graft.core.site import Site
from graft.errors import SiteError

PREFIX, WRAPPED = "graft_", ("sdpa", "eager", fast_attention.NAME)
_watching = threading.local()
_seats: WeakKeyDictionary[torch.nn.Module, dict[str, list[KeyValues]]] = WeakKeyDictionary()


class Attention(Host):
    """The attention modules of one model. Its own implementation comes back when the last insert is gone."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._implementation = ""  # the model's own
        self._modules: dict[str, list[torch.nn.Module]] = {}

    @property
    def own(self) -> str:
        """The model's own implementation, with or without inserts around it."""
        if self._modules:
            return self._implementation
        return getattr(self._model.config, "_attn_implementation", None) or ""

    def become(self, implementation: str) -> None:
        """Let the model attend by another implementation; inserts stay around it."""
        if self._modules:
            self._implementation = implementation
            implementation = _registered(implementation)
        self._model.set_attn_implementation(implementation)

    def add(self, name: str, site: Site, insert: KeyValues) -> None:
        if not self._modules:
            self._implementation = self.own
            self._model.set_attn_implementation(_registered(self._implementation))
        self._modules.setdefault(name, []).append(site.module)
        _seats.setdefault(site.module, {}).setdefault(name, []).append(insert)

    def remove(self, name: str) -> None:
        for module in self._modules.pop(name, ()):
            _seats[module].pop(name, None)
            if not _seats[module]:
                del _seats[module]
            if not self._modules:
                self._model.set_attn_implementation(self._implementation)


def without_inserts(config: Any) -> None:
    """Let a copy of a model's configuration name its own attention, not what inserts put around it."""
    given = getattr(config, "_attn_implementation", None) or ""
    if given.removeprefix(PREFIX) != given:
        config._attn_implementation = given.removeprefix(PREFIX)


@contextlib.contextmanager
def watched(model: Any) -> Iterator[dict[torch.nn.Module, tuple[int, int]] | None]:
    """Let forwards inside the block put {attention module: (heads, width) of its keys} into what is yielded.

    Only modules that a prefix can go to are in it: keys and values have one shape. None is yielded for a
    model whose attention is of another kind than sdpa and eager.
    """
    before = getattr(model.config, "_attn_implementation", None)
    if before not in WRAPPED or not model._can_set_attn_implementation():
        yield None if before not in WRAPPED and before is not None else {}
        return
    _watching.shapes = {}
    model.set_attn_implementation(_registered(before))
    try:
        yield _watching.shapes
    finally:
        model.set_attn_implementation(before)
        del _watching.shapes


def _note(module: torch.nn.Module, key: torch.Tensor, value: torch.Tensor) -> None:
    shapes = getattr(_watching, "shapes", None)
    if shapes is not None and key.shape == value.shape:
        shapes[module] = (key.shape[1], key.shape[3])


def _registered(wrapped: str) -> str:
    """Register the wrapper around one implementation, once, and return its name."""
    name = PREFIX + wrapped
    if wrapped not in WRAPPED:
        raise SiteError(
            f"keys and values cannot be added to attention of kind {wrapped!r}",
            "attention by sdpa or eager",
            'load the base with attn_implementation="sdpa"',
        )
    if name not in ALL_ATTENTION_FUNCTIONS:

        def attend(
            module: torch.nn.Module,
            query: Any,
            key: Any,
            value: Any,
            attention_mask: Any = None,
            **keywords: Any,
        ) -> Any:
            original = (
                ALL_ATTENTION_FUNCTIONS.get(wrapped)
                or sys.modules[type(module).__module__].eager_attention_forward
            )
            _note(module, key, value)
            route = current()
            seats = _seats.get(module, {})
            if route is not None and any(name in seats for name in route.names):
                key, value, attention_mask, keywords = _extended(
                    module, route, seats, query, key, value, attention_mask, keywords
                )
            return original(module, query, key, value, attention_mask, **keywords)

        AttentionInterface.register(name, attend)
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[wrapped])
    return name


def _extended(
    module: Any,
    route: Route,
    seats: dict[str, list[KeyValues]],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    keywords: dict[str, Any],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, Any]]:
    """Put the prefix of every row in front of keys, values, mask and position bias.

    Shorter prefixes are filled up on the left.
    """
    parts = route.parts(len(query))
    added = [[insert.keys_values() for insert in seats.get(name or "", ())] for name, _ in parts]
    width = max(sum(k.shape[1] for k, _ in pairs) for pairs in added)
    keys: list[torch.Tensor] = []
    values: list[torch.Tensor] = []
    live = torch.zeros(len(query), 1, 1, width, dtype=torch.bool, device=query.device)
    for pairs, (_, rows) in zip(added, parts, strict=True):
        filler = width - sum(k.shape[1] for k, _ in pairs)
        for side, into, like in ((0, keys, key), (1, values, value)):
            empty = like.new_zeros(like.shape[1], filler, like.shape[3])
            row = torch.cat([empty, *(pair[side].to(like.dtype) for pair in pairs)], 1)
            into.append(row[None].expand(rows.stop - rows.start, -1, -1, -1))
        live[rows, ..., filler:] = True
    if mask is None:
        mask = _own_mask(module, query, key, keywords)
    seen = live.expand(-1, 1, mask.shape[2], -1)
    if mask.dtype != torch.bool:  # eager adds its mask to the scores
        seen = torch.zeros(seen.shape, dtype=mask.dtype, device=mask.device).masked_fill(
            ~seen, torch.finfo(mask.dtype).min
        )
    mask = torch.cat([seen.expand(-1, mask.shape[1], -1, -1), mask.expand(len(query), -1, -1, -1)], -1)
    if keywords.get("position_bias") is not None:  # T5: a prefix has no distance
        keywords = keywords | {"position_bias": F.pad(keywords["position_bias"], (width, 0))}
    return torch.cat([torch.cat(keys), key], 2), torch.cat([torch.cat(values), value], 2), mask, keywords


def _own_mask(module: Any, query: torch.Tensor, key: torch.Tensor, keywords: dict[str, Any]) -> torch.Tensor:
    """Return the mask that a missing one stands for.

    Several queries of a causal module see everything before them; any others see everything.
    """
    q, k = query.shape[2], key.shape[2]
    causal = keywords.get("is_causal")
    causal = getattr(module, "is_causal", False) if causal is None else causal
    mask = torch.ones(1, 1, q, k, dtype=torch.bool, device=query.device)
    return mask.tril(k - q) if causal and q > 1 else mask
