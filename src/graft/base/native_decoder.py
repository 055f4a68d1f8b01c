"""The native decoder of a base: read from a model by what it is made of, and tried before it is used.

Models of Llama's kind (Llama, Mistral, Qwen 2 and 3, Gemma, SmolLM, the seedling) fit. A model of another
kind, or one whose probe differs, is no error: its texts are written by its own forward.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graft.base import liveness
from graft.base.adapter import Adapter
from graft.base.long_prompts import LongPrompts, Routed
from graft.base.native_stepper import NativeStepper
from graft.kernels import native
from graft.kernels.decoder import (
    FIXED,
    Decoder,
    Layer,
    Matrix,
    Model,
    Rows,
    Update,
    Updates,
    in_tiles,
    tileable,
)
from graft.kernels.packed import Grouped, Packed
from graft.quant import QuantLinear, int8

NAMES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")  # fmt: skip
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}
# What some families multiply or leave out. In 16 bits, a probe of a few tokens might not tell.
USUAL = {"embedding_multiplier": 1, "residual_multiplier": 1, "logits_scaling": 1, "logit_scale": 1,
    "no_rope_layers": 1}  # fmt: skip
READ, NEW = 14, 2  # tokens of the probe
DECODED = 64 << 20  # bytes of decoded scales that are kept at most
LARGE_BLOCK = 1 << 20  # numbers in the weights of a block
LARGE_HEAD = 8 << 20  # bytes of a head that no cache holds from step to step


class Unlike(Exception):
    """A model is not of the kind that the native decoder computes; says why."""


class NativeDecoder:
    """The native decoder of one model, read when it is asked for, and again when weights have changed."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._state: Any = None
        self._read: _Read | None = None
        self.reason = ""  # why there is none

    def stepper(
        self, adapters: Mapping[str, Adapter], *, exact: bool = False, routed: Routed | None = None
    ) -> NativeStepper | None:
        """Return a stepper for the bare base and adapters that `serves` accepts; None if there is none.

        exact: never in fixed point; see `graft.kernels.decoder.Decoder`.
        routed: of the base, whose forward reads long prompts; without it the decoder reads all of them.
        The model must be in evaluation mode, and stay as it is while the stepper is used.
        """
        read = self._current()
        if read is None:
            return None
        decoder = Decoder(read.model, self._dtype(), exact=exact, rough=None if exact else read.rough)
        long_prompts = None
        if routed and self._reads_faster(read.model, exact):
            long_prompts = LongPrompts(self._model, decoder, routed)
        return NativeStepper(decoder, read.angles, lambda name: self.updates(adapters[name]), long_prompts)

    def serves(self, adapter: Adapter | None) -> bool:
        """Return whether an adapter only adds low-rank updates to linears of the blocks."""
        return adapter is None or _places(adapter, self._model) is not None

    def updates(self, adapter: Adapter) -> Updates:
        """Return the updates of an adapter that `serves` accepts, as they are now."""
        places = _places(adapter, self._model)
        assert places is not None, "asked of `serves` first"
        return Updates(places, len(_stack(self._model).layers), self._dtype())

    def _dtype(self) -> torch.dtype:
        """The format of activations, of the cache, and of the factors of updates."""
        dtype: torch.dtype = self._model.get_input_embeddings().weight.dtype
        return dtype

    def _reads_faster(self, model: Model, exact: bool) -> bool:
        """Return whether the model's own forward reads a block of tokens faster than the decoder does.

        It does if the decoder would multiply in fp32, or torch's products in 16 bits are faster than those;
        but for small models, whose products take no longer than what surrounds them.
        """
        first = model.layers[0].weights
        if sum(_rows(weight) * _columns(weight) for weight in first) < LARGE_BLOCK:
            return False
        fixed = not exact and native.level() in FIXED and not all(isinstance(w, Tensor) for w in first)
        return not fixed or native.by_torch(self._dtype())

    def _current(self) -> "_Read | None":
        """Return what was read of the model, if its weights are still those; else read and try it again."""
        if not native.usable():
            self.reason = "the native kernels are switched off"
            return None
        if _watched(self._model):
            self.reason = "somebody's hooks or methods want to see the model's own forward"
            return None
        state = _state(self._model)
        if state != self._state:
            self._state, self._read, self.reason = state, None, ""
            try:
                read = _Read(self._model)
                self._try(read)
                self._read = read
            except Unlike as reason:
                self.reason = str(reason)
            except (AttributeError, TypeError, ValueError, RuntimeError, KeyError) as error:
                self.reason = f"{type(self._model).__name__} is built another way ({error})"
        return self._read

    @torch.no_grad()
    def _try(self, read: "_Read") -> None:
        """Compare the decoder with the model's own forward. Raises Unlike."""
        ids = liveness.ids(self._model, 1, READ + NEW)
        with liveness.quietly(self._model, training=False):
            wanted = self._model(ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0].float()
        decoder = Decoder(read.model, self._dtype())
        decoder.resize(1, READ + NEW, *read.angles(READ + NEW))
        rows = Rows(torch.zeros(READ, dtype=torch.long), torch.arange(READ), [None] * READ)
        got = [decoder.step(rows, ids[0, :READ].contiguous())]
        for place in range(READ, READ + NEW):
            row = Rows(torch.zeros(1, dtype=torch.long), torch.tensor([place]), [None])
            got.append(decoder.step(row, ids[0, place : place + 1].contiguous()))
        size = max(1.0, float(wanted.abs().max()))
        error = float((torch.cat(got) - wanted).abs().max()) / size
        # A model in 16 bits rounds at every step, which this decoder does not.
        if not error <= (1e-4 if self._dtype() == torch.float32 else 0.05):
            raise Unlike(f"its logits differ from those of {type(self._model).__name__} by {error:.1e}")


class _Read:
    """What was read of a model.  model: for the kernels.  angles: of rotary positions."""

    def __init__(self, model: Any) -> None:
        stack = _stack(model)
        self._stack, self._used, self._room = stack, list[Tensor](), DECODED
        config = model.config.get_text_config()
        attention = stack.layers[0].self_attn
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        _require(kinds <= {"full_attention", "sliding_attention"}, "layers of attention", kinds)
        for name, usual in USUAL.items():
            given = getattr(config, name, None)
            plain = given is None or all(
                each == usual for each in (given if isinstance(given, list) else [given])
            )
            _require(plain, f"{name} {usual}", given)
        self._rotaries = sorted(kinds) if hasattr(stack.rotary_emb, "layer_types") else [None]
        layers = [self._layer(layer, config) for layer in stack.layers]
        final, epsilon = self._norm(stack.norm)
        head = model.get_output_embeddings()
        self._used += [stack.embed_tokens.weight, head.weight]
        self.model = Model(
            layers=layers,
            embed=self._matrix(stack.embed_tokens.weight),
            head=_sixteen_bits(self._matrix(head.weight)),
            norm=final,
            heads=_rows(layers[0].weights[0]) // attention.head_dim,
            kv_heads=_rows(layers[0].weights[1]) // attention.head_dim,
            dim=attention.head_dim,
            epsilon=epsilon,
            attention_scale=float(attention.scaling),
            activation=_activation(stack.layers[0].mlp.act_fn),
            embed_scale=self._embed_scale(stack.embed_tokens),
            attention_cap=float(getattr(attention, "attn_logit_softcapping", None) or 0),
            logit_cap=float(getattr(config, "final_logit_softcapping", None) or 0),
            head_bias=self._fp32(head.bias),
        )
        unread = {id(p) for p in model.parameters()} - {id(p) for p in self._used}
        _require(not unread, "all parameters known", f"{len(unread)} others")

    def angles(self, capacity: int) -> tuple[Tensor, Tensor]:
        """Return the cosines and sines of `capacity` positions, (tables, capacity, half)."""
        rotary = self._stack.rotary_emb
        kinds = getattr(rotary, "rope_type", "default")
        for kind in kinds.values() if isinstance(kinds, dict) else [kinds]:
            _require(kind not in ("dynamic", "longrope"), "angles that depend on the position alone", kind)
        like, places = torch.zeros(1, 1, dtype=torch.float32), torch.arange(capacity)[None]
        turns = [rotary(like, places, *([kind] if kind else [])) for kind in self._rotaries]
        half = turns[0][0].shape[-1] // 2
        for table in (table for turn in turns for table in turn):
            _require(torch.equal(table[..., :half], table[..., half:]), "halves that turn together", "others")
        cos, sin = (torch.cat([turn[i][..., :half] for turn in turns]) for i in (0, 1))
        return cos.float().contiguous(), sin.float().contiguous()

    @cached_property
    def rough(self) -> Packed | None:
        """The head in 8 bits, made when it is first asked for; None where a step gains nothing by it.

        A base that is not packed has no numbers in fixed point, and goes without.
        """
        head = self.model.head
        packed = any(
            not isinstance(weight, Tensor) for layer in self.model.layers for weight in layer.weights
        )
        if not packed or native.level() not in FIXED or self.model.head_bias is not None:
            return None
        if not isinstance(head, Tensor) or head.nbytes < LARGE_HEAD:
            return None
        return Packed(*int8.quantise(head), None, block=head.shape[1], columns=head.shape[1])

    def _layer(self, layer: Any, config: Any) -> Layer:
        linears = [layer.get_submodule(name) for name in NAMES]
        attention = layer.self_attn
        outer = hasattr(layer, "pre_feedforward_layernorm")  # norms of what leaves, as in Gemma 2
        inner = layer.pre_feedforward_layernorm if outer else layer.post_attention_layernorm
        kind = getattr(attention, "layer_type", None)
        sliding = getattr(attention, "sliding_window", getattr(config, "sliding_window", None))
        return Layer(
            weights=[self._weight(module) for module in linears],
            biases=[self._fp32(module.bias) for module in linears],
            attention_norm=self._norm(layer.input_layernorm)[0],
            mlp_norm=self._norm(inner)[0],
            after_attention_norm=self._norm(layer.post_attention_layernorm)[0] if outer else None,
            after_mlp_norm=self._norm(layer.post_feedforward_layernorm)[0] if outer else None,
            q_norm=self._head_norm(attention, "q_norm"),
            k_norm=self._head_norm(attention, "k_norm"),
            window=int(sliding or 0),
            rotary=self._rotaries.index(kind) if self._rotaries != [None] else 0,
        )

    def _weight(self, module: Any) -> Matrix:
        if type(module) is QuantLinear:
            _require(not module.transposed, "linears", "a transposed one")
            self._used += module.packed().values()
            _require(all(map(native.plain, module.packed().values())), "weights in memory", "others")
            return self._decoded(module.described())
        _require(type(module) is nn.Linear, "linears", type(module).__name__)
        self._used.append(module.weight)
        return self._matrix(module.weight)

    def _decoded(self, weight: Packed | Grouped) -> Packed | Grouped:
        """Return a weight whose scales lie as a step reads them, as long as there is room for them.

        Every step would decode and move them again, which takes a sixth of its time.
        """
        if not isinstance(weight, Packed) or not tileable(weight):
            return weight
        self._room -= weight.codes.nbytes // 8  # a scale for 32 bytes
        return in_tiles(weight) if self._room >= 0 else weight

    def _matrix(self, weight: Tensor) -> Tensor:
        known = native.plain(weight) and weight.dtype in native.DTYPES and weight.is_contiguous()
        _require(known, "weights in memory", f"{weight.dtype} on {weight.device}")
        return weight.detach()

    def _fp32(self, tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        self._used.append(tensor)
        return self._matrix(tensor).float().contiguous()

    def _head_norm(self, attention: Any, name: str) -> Tensor | None:
        norm = getattr(attention, name, None)
        if norm is None:
            return None
        weight = self._norm(norm)[0]
        _require(len(weight) == attention.head_dim, "norms of heads", f"one of {len(weight)}")
        return weight

    def _norm(self, module: Any) -> tuple[Tensor, float]:
        """Return what a norm multiplies x / rms(x) with, (some keep it less 1), and its ε."""
        epsilon = float(getattr(module, "variance_epsilon", getattr(module, "eps", 0)) or 0)
        weight = self._fp32(module.weight)
        assert weight is not None
        x = torch.linspace(-2, 2, len(weight)).roll(1)[None]
        unit = x * torch.rsqrt(x.square().mean() + epsilon)
        given = module(x.to(module.weight.dtype)).float()
        for factor in (weight, 1 + weight):
            if torch.allclose(given, unit * factor, rtol=0.02, atol=0.02):
                return factor.contiguous(), epsilon
        raise Unlike(f"{type(module).__name__} is not a norm by the root mean square")

    def _embed_scale(self, table: Any) -> float:
        scale = getattr(table, "embed_scale", 1.0)
        if isinstance(scale, Tensor):
            scale = scale.to(table.weight.dtype)
        _require(native.plain(table.weight), "a table in memory", table.weight.device)
        ids = torch.arange(min(4, len(table.weight)))
        wanted = table.weight[ids].float() * float(scale)
        _require(
            torch.allclose(table(ids).float(), wanted, rtol=0.01), "a table of vectors", type(table).__name__
        )
        return float(scale)


def _stack(model: Any) -> Any:
    return model.base_model


def _columns(matrix: Matrix) -> int:
    return matrix.shape[1] if isinstance(matrix, Tensor) else matrix.columns


def _rows(matrix: Matrix) -> int:
    return len(matrix) if isinstance(matrix, Tensor) else len(matrix.codes)


def _require(holds: bool, expected: str, given: object) -> None:
    if not holds:
        raise Unlike(f"expected {expected}, found {given}")


def _activation(function: Any) -> str:
    x = torch.linspace(-4, 4, 33)
    for name, known in ACTIVATIONS.items():
        if torch.allclose(function(x), known(x), atol=1e-6):
            return name
    raise Unlike(f"the activation {type(function).__name__} is not known")


def _sixteen_bits(head: Tensor) -> Tensor:
    """Return the head in bf16 if that loses nothing, as when a 16-bit model was loaded in fp32.

    A step reads all of it, so this copy of half its size saves more time than any other.
    """
    if head.dtype != torch.float32:
        return head
    for part in head.split(4096):
        if not torch.equal(part, part.bfloat16().float()):
            return head
    return head.bfloat16()


def _watched(model: Any) -> bool:
    """Return whether a module has a hook or a forward that is not Graft's."""
    added: list[Any] = []
    for module in model.modules():
        added += [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        added += [module.__dict__["forward"]] if "forward" in module.__dict__ else []
    return not all(getattr(getattr(f, "func", f), "__module__", "").startswith("graft.") for f in added)


def _state(model: Any) -> tuple[Any, ...]:
    """Return what changes when a weight is changed in place or replaced."""
    return (native.level(), *((id(p), p.data_ptr(), p._version) for p in model.parameters()))


def _places(adapter: Adapter, model: Any) -> dict[tuple[int, int], Update] | None:
    """Return {(layer, place in LINEARS): update}, or None if the adapter is anything else than that."""
    found: dict[tuple[int, int], Update] = {}
    for (layer, place), insert in _seats(adapter, model):
        form = None if layer < 0 else insert.low_rank()
        if form is None or (layer, place) in found:
            return None
        found[layer, place] = Update(*form)
    return found


def _seats(adapter: Adapter, model: Any) -> Iterator[tuple[tuple[int, int], Any]]:
    """Yield the (layer, place) of every insert, (-1, 0) for one at another place, and the insert."""
    stack = _stack(model)
    prefix = next((name for name, module in model.named_modules() if module is stack), "")
    known = re.compile(re.escape(f"{prefix}." if prefix else "") + r"layers\.(\d+)\.(.+)")
    for site, insert in adapter.inserts:
        match = known.fullmatch(site.name) if site.kind == "linear" else None
        fits = match is not None and match[2] in NAMES
        yield ((int(match[1]), NAMES.index(match[2])) if match and fits else (-1, 0)), insert
