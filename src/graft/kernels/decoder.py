"""One step of a decoder of Llama's kind in one C call: tokens of several texts in, logits out.

`csrc/decoder.h` says what a step computes. This file describes a model, its cache of keys and values and the
low-rank updates of its rows for C. There is no torch reference here: the model's own forward is one, and
is used where this cannot be (see `graft.base.native_decoder`).
"""

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, c_float, c_int32, c_int64, c_void_p
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from graft.kernels import native
from graft.kernels.native import DTYPES, Weight, address
from graft.kernels.packed import Grouped, Packed
from graft.kernels.reference import fp32_absmax

LINEARS = ("q", "k", "v", "o", "gate", "up", "down")
ACTIVATIONS = ("silu", "gelu_tanh")
DIM = 16  # heads in the cache are padded to a multiple of it
MOST_ROWS = 32  # of one call: more would leave the caches
FIXED = native.LEVELS[1:]  # levels that multiply codes in fixed point: see csrc/few_chunks.h

TILE, CHUNK = 16, 64  # rows and columns that few_rows of csrc/few.h takes together

Matrix = Packed | Grouped | Tensor


def tileable(weight: Packed) -> bool:
    """Return whether `in_tiles` can be had: of codes of 4 bits that are decoded by chunks."""
    return weight.codebook is not None and weight.block % (CHUNK // 2) == 0


def in_tiles(weight: Packed) -> Packed:
    """Return a weight whose scales lie as a step reads them: (tiles of 16 rows, chunks, 16) in fp32.

    A chunk is 64 columns, or 32 where 64 do not divide the block. Zeros fill the last tile and chunk.
    """
    chunk = CHUNK if weight.block % CHUNK == 0 else CHUNK // 2
    scales = fp32_absmax(weight).repeat_interleave(weight.block // chunk, dim=1)
    chunks = -(-weight.columns // CHUNK) * CHUNK // chunk
    scales = F.pad(scales[:, :chunks], (0, max(chunks - scales.shape[1], 0), 0, -len(scales) % TILE))
    tiles = scales.unflatten(0, (-1, TILE)).transpose(1, 2).contiguous()
    return weight._replace(absmax=tiles, nested=None)


@dataclass(frozen=True)
class Layer:
    """A block.

    weights, biases: one of each of LINEARS.  Norms are in fp32, and are what x / rms(x) is multiplied by:
    attention_norm and mlp_norm of what enters, after_* of what leaves, q_norm and k_norm of each head.
    window: positions that a query sees, its own included; 0 for all.  rotary: which table of angles.
    """

    weights: Sequence[Matrix]
    biases: Sequence[Tensor | None]
    attention_norm: Tensor
    mlp_norm: Tensor
    after_attention_norm: Tensor | None = None
    after_mlp_norm: Tensor | None = None
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None
    window: int = 0
    rotary: int = 0


@dataclass(frozen=True)
class Model:
    """A decoder.  embed: (vocabulary, width).  head: the same shape.  dim: of a head.  caps: 0 for none."""

    layers: Sequence[Layer]
    embed: Matrix
    head: Matrix
    norm: Tensor
    heads: int
    kv_heads: int
    dim: int
    epsilon: float
    attention_scale: float
    activation: str = "silu"
    embed_scale: float = 1.0
    attention_cap: float = 0.0
    logit_cap: float = 0.0
    head_bias: Tensor | None = None


@dataclass(frozen=True)
class Update:
    """scale · B A x of one linear.  A: (r, in).  B: (out, r)."""

    A: Tensor
    B: Tensor
    scale: float


class _Layer(ctypes.Structure):
    _fields_ = (
        ("weight", Weight * len(LINEARS)),
        ("bias", c_void_p * len(LINEARS)),
        ("attention_norm", c_void_p),
        ("mlp_norm", c_void_p),
        ("after_attention_norm", c_void_p),
        ("after_mlp_norm", c_void_p),
        ("q_norm", c_void_p),
        ("k_norm", c_void_p),
        ("window", c_int64),
        ("rotary", c_int64),
    )


class _Decoder(ctypes.Structure):
    _fields_ = (
        *((name, c_int64) for name in ("layers", "width", "inner", "vocabulary", "heads", "kv_heads", "dim")),
        ("half", c_int64),
        ("gelu", c_int64),
        ("fixed", c_int64),
        *((name, c_float) for name in ("epsilon", "embed_scale", "attention_scale")),
        *((name, c_float) for name in ("attention_cap", "logit_cap")),
        ("layer", POINTER(_Layer)),
        ("embed", POINTER(Weight)),
        ("head", POINTER(Weight)),
        ("rough", POINTER(Weight)),
        *((name, c_void_p) for name in ("head_bias", "norm", "cos", "sin")),
    )


class _LowRank(ctypes.Structure):
    _fields_ = (("A", c_void_p), ("B", c_void_p), ("dtype", c_int32), ("r", c_int32), ("scale", c_float))


class _Batch(ctypes.Structure):
    _fields_ = (
        ("rows", c_int64),
        ("wanted", c_int64),
        *(
            (name, c_void_p)
            for name in ("tokens", "slots", "positions", "answers", "updates", "keys", "values")
        ),
        *((name, c_int64) for name in ("dtype", "cache_slots", "capacity")),
    )


class Updates:
    """The low-rank updates of one adapter, in memory as C reads them.

    by_place: {(layer, place in LINEARS): update}.  dtype: in which the factors are kept.
    """

    def __init__(self, by_place: dict[tuple[int, int], Update], layers: int, dtype: torch.dtype) -> None:
        self._held: list[Tensor] = []
        self._table = (_LowRank * (layers * len(LINEARS)))()
        for (layer, place), update in by_place.items():
            A = update.A.detach().to(dtype).contiguous()
            B = update.B.detach().to(dtype).T.contiguous()
            self._held += [A, B]
            entry = _LowRank(A.data_ptr(), B.data_ptr(), DTYPES[dtype], len(A), update.scale)
            self._table[layer * len(LINEARS) + place] = entry

    @property
    def pointer(self) -> int:
        return ctypes.addressof(self._table)


@dataclass
class Rows:
    """The rows of a call: what does not change while the same texts are continued.

    slots, positions: (n,) int64.  answers: the rows whose logits are asked for, or None for all.
    updates: one of each row, or None.
    """

    slots: Tensor
    positions: Tensor
    updates: Sequence[Updates | None]
    answers: Tensor | None = None
    batch: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        n = len(self.slots)
        if self.answers is None:
            self.answers = torch.arange(n)
        pointers = (c_void_p * n)(*(u.pointer if u else None for u in self.updates))
        table = pointers if any(self.updates) else None
        self.batch = _Batch(
            rows=n,
            wanted=len(self.answers),
            slots=self.slots.data_ptr(),
            positions=self.positions.data_ptr(),
            answers=self.answers.data_ptr(),
            updates=ctypes.addressof(table) if table is not None else None,
        )
        self._table = table


class Decoder:
    """A model and its cache of keys and values, in memory as C reads them.

    Tensors of `model` are not copied. The caller sees to it that they stay where they are.
    exact: multiply in fp32 always; else codes of 4 and 8 bits in fixed point where that is faster
    (`csrc/few_chunks.h`).  rough: the head in 8 bits: logits are estimated with it, and the largest computed
    from the head itself (`csrc/logits.h`).
    """

    def __init__(
        self, model: Model, dtype: torch.dtype, *, exact: bool = True, rough: Packed | None = None
    ) -> None:
        self.model, self.dtype = model, dtype
        self._held: list[Any] = []
        table = (_Layer * len(model.layers))(*map(self._layer, model.layers))
        embed, head = native.weight(model.embed), native.weight(model.head)
        self.vocabulary = int(head.rows)
        inner = table[0].weight[LINEARS.index("gate")].rows
        estimates = native.weight(rough) if rough else None
        self._held += [table, embed, head, rough, estimates]
        self._decoder = _Decoder(
            layers=len(model.layers), width=embed.columns, inner=inner, vocabulary=head.rows,
            heads=model.heads, kv_heads=model.kv_heads, dim=model.dim,
            gelu=ACTIVATIONS.index(model.activation), fixed=not exact, epsilon=model.epsilon,
            embed_scale=model.embed_scale, attention_scale=model.attention_scale,
            attention_cap=model.attention_cap, logit_cap=model.logit_cap, layer=table,
            embed=ctypes.pointer(embed), head=ctypes.pointer(head),
            rough=ctypes.pointer(estimates) if estimates else None,
            head_bias=address(model.head_bias), norm=address(model.norm),
        )  # fmt: skip
        self.keys = self.values = torch.empty(0)
        self.slots = self.capacity = 0

    def _layer(self, layer: Layer) -> _Layer:
        norms = ("attention_norm", "mlp_norm", "after_attention_norm", "after_mlp_norm", "q_norm", "k_norm")
        return _Layer(
            (Weight * len(LINEARS))(*map(native.weight, layer.weights)),
            (c_void_p * len(LINEARS))(*(None if b is None else b.data_ptr() for b in layer.biases)),
            *(address(getattr(layer, name)) for name in norms),
            layer.window,
            layer.rotary,
        )

    # The cache

    def resize(self, slots: int, capacity: int, cos: Tensor, sin: Tensor) -> None:
        """Make room for this many slots of `capacity` positions; what lies in those that remain is kept.

        cos, sin: the angles of every position, (tables, capacity, half), in fp32.
        """
        model = self.model
        width = -(-model.dim // DIM) * DIM
        kept = min(slots, self.slots), min(capacity, self.capacity)
        for name in ("keys", "values"):
            # Zeros: the columns behind a head's own are summed too.
            made = torch.zeros(len(model.layers), slots, model.kv_heads, capacity, width, dtype=self.dtype)
            if all(kept):
                made[:, : kept[0], :, : kept[1]] = getattr(self, name)[:, : kept[0], :, : kept[1]]
            setattr(self, name, made)
        self.slots, self.capacity = slots, capacity
        self._angles = cos.contiguous(), sin.contiguous()
        self._decoder.half = cos.shape[-1]
        self._decoder.cos, self._decoder.sin = (t.data_ptr() for t in self._angles)

    def copy(self, source: int, slot: int, length: int) -> None:
        """Copy the first `length` positions of a slot to another one."""
        for cache in (self.keys, self.values):
            cache[:, slot, :, :length] = cache[:, source, :, :length]

    # Steps

    def step(self, rows: Rows, tokens: Tensor) -> Tensor:
        """Read one token of each row, at its position. Returns the logits of the rows that answer, in fp32.

        tokens: (n,) int64, contiguous.
        """
        batch = rows.batch
        logits = torch.empty(batch.wanted, self.vocabulary)
        batch.tokens = tokens.data_ptr()
        batch.keys, batch.values = self.keys.data_ptr(), self.values.data_ptr()
        batch.dtype, batch.cache_slots, batch.capacity = DTYPES[self.dtype], self.slots, self.capacity
        failed = native.function("decoder_step")(
            ctypes.byref(self._decoder), ctypes.byref(batch), address(logits), torch.get_num_threads()
        )
        if failed:
            raise MemoryError(f"no scratch memory for a step of {batch.rows} rows")
        return logits
