"""A narrow copy of a stack of blocks: the base's own classes with every width divided.

Masks, positions and rotary embeddings are then made by the base's own code, from the narrow configuration.
"""

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from graft.core.route import current
from graft.core.site import Site
from graft.errors import UsageError

WIDTHS = (
    "hidden_size", "intermediate_size", "d_ff", "ffn_dim", "n_inner", "encoder_ffn_dim", "decoder_ffn_dim",
    "word_embed_proj_dim",
)  # fmt: skip
DEPTHS = ("num_hidden_layers", "num_layers", "encoder_layers", "decoder_layers")


class Narrow(nn.Module):
    """The narrow stack of some blocks of `stack`, with random weights."""

    def __init__(self, stack: Site, blocks: Sequence[Site], reduction: int) -> None:
        super().__init__()
        config = narrowed(stack.module.config, [block.layer or 0 for block in blocks], reduction)
        self.width = config.hidden_size
        self.net: Any = type(stack.module)(config)
        self._list = blocks[0].name.removeprefix(f"{stack.name}.").rpartition(".")[0]
        for name, child in list(self.net.named_children()):
            if isinstance(child, nn.Embedding):
                setattr(self.net, name, _Nothing())
        takes = inspect.signature(self.net.forward).parameters
        self._entry = "inputs_embeds" if "inputs_embeds" in takes else "hidden_states"

    @property
    def blocks(self) -> Any:
        """The blocks of the narrow stack."""
        return self.net.get_submodule(self._list)

    def forward(self, states: torch.Tensor, cache: Any = None, **given: Any) -> torch.Tensor:
        """Return states (B, T, width) after all of its blocks, in their dtype.

        given: masks and positions, as for the base.  cache: the base's, of keys and values; it then holds
        those of this stack as well.
        """
        if cache is not None:
            given["past_key_values"] = self._beside(cache)
        cast = {name: p.to(states.dtype) for name, p in self.net.named_parameters()}
        output = torch.func.functional_call(self.net, cast, (), {self._entry: states, **given})
        last: torch.Tensor = output.last_hidden_state
        return last

    def _beside(self, cache: Any) -> Any:
        """Return the cache of this stack.

        Its layers are appended to the base's, so whatever reorders or crops those does the same here. In a
        batch with other adapters it has only some of the rows, and is kept separately.
        """
        route, both = current(), isinstance(cache, EncoderDecoderCache)
        assert route is not None, "inserts run inside a Route"
        parts = [cache.self_attention_cache, cache.cross_attention_cache] if both else [cache]
        if len(route.spans) > 1 and len(parts[0].layers[0].keys) > route.rows:
            raise UsageError(
                "beams over rows of several adapters, with a cache",
                "rows of one adapter, or one beam",
                "generate each adapter's rows by themselves, or with use_cache=False",
            )
        # On the base's cache, so that a copy of it takes them along.
        caches: dict[int, Any] = vars(cache).setdefault("of_narrow_stacks", {})
        if id(self) not in caches:
            narrow = [DynamicCache(config=self.net.config) for _ in parts]
            if len(route.spans) == 1:
                for part, narrow_part in zip(parts, narrow, strict=True):
                    part.layers += narrow_part.layers
            caches[id(self)] = EncoderDecoderCache(*narrow) if both else narrow[0]
        return caches[id(self)]


class Projection(nn.Linear):
    """A linear map in the dtype of its input.

    start: its weight at birth, with biases of 0; None: torch's own.
    """

    def __init__(self, inputs: int, outputs: int, start: torch.Tensor | None) -> None:
        super().__init__(inputs, outputs)
        if start is not None:
            self.weight = nn.Parameter(start.clone())
            nn.init.zeros_(self.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))


class _Nothing(nn.Module):
    """Takes the place of a table: ids and positions are in the base's embeddings already."""

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return torch.zeros(())


def narrowed(config: Any, layers: Sequence[int], reduction: int) -> Any:
    """Return the configuration of the narrow stack.

    A head keeps an even number of positions, at least two.
    """
    config = copy.deepcopy(config)
    width = config.hidden_size
    heads = config.num_attention_heads
    depth = config.num_hidden_layers
    head = head_width(config)
    narrow_head = max(2, head // reduction // 2 * 2)
    narrow_width = heads * narrow_head if heads * head == width else max(1, width // reduction)
    for name in WIDTHS:
        value = getattr(config, name, None)
        if isinstance(value, int):
            setattr(config, name, narrow_width if value == width else max(1, value // reduction))
    for name in DEPTHS:
        if hasattr(config, name):
            setattr(config, name, len(layers))
    for name, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == depth:  # one entry per block
            setattr(config, name, [value[layer] for layer in layers])
    if getattr(config, "head_dim", None):
        config.head_dim = narrow_head
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("partial_rotary_factor"):  # an even number of positions turns; the half is against rounding
        turned = 2 * max(1, round(narrow_head * rope["partial_rotary_factor"] / 2))
        rope["partial_rotary_factor"] = min(1.0, (turned + 0.5) / narrow_head)
    config.vocab_size = 1
    config.pad_token_id = None
    config.use_cache = False
    return config


def head_width(config: Any) -> int:
    """Return the number of positions of one attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
