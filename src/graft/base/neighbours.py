"""Whether rows may share a batch: whether a row answers beside others as it answers alone.

Hooks cut a batch of several adapters along its rows. That is right only where a tensor has its rows first,
and where nothing runs from one row into another; and padding is harmless only where a model heeds its mask.
No list of models says so. A small batch is compared with its rows alone, once for each question, when it is
first asked. Where they differ, rows are run apart, and a notice says so.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn
from transformers.utils.generic import ModelOutput

from graft.base import liveness
from graft.core.part import Seats
from graft.core.positions import context_length
from graft.errors import notice

Sharing = Literal["free", "length", "none"]  # rows of any length, of one length, or no rows share a batch
OUTSIDE = ("prompt", "kv", "stack")  # sites whose inserts act on more than the module there
ROWS, LENGTH = 3, 9
WRITTEN, PADDED = 40, 12  # tokens of a prompt and of its padding; some models cut rows into blocks


class Neighbours:
    """What is known about the rows of one model."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._uncut: set[str] | None = None
        self._outside: dict[frozenset[str], bool] = {}
        self._sharing: Sharing | None = None

    def mix(self, seats: Seats, compare: Callable[[torch.Tensor], tuple[Any, Any]]) -> bool:
        """Return whether rows of several adapters may share a forward.  seats: those of all of them.

        compare: returns the answers to rows of ids, one for each adapter, in one batch and one by one. It is
        called once for each set of kinds in OUTSIDE.
        """
        if self._uncut is None:
            self._uncut = _uncut(self._model)
        if any(site.name in self._uncut for site, _ in seats if site.kind not in OUTSIDE):
            self._say("not all of its tensors have one part for each row")
            return False
        outside = frozenset(site.kind for site, _ in seats if site.kind in OUTSIDE)
        if outside and outside not in self._outside:
            self._outside[outside] = _same(lambda: compare(liveness.ids(self._model, 2 * ROWS, LENGTH)))
            if not self._outside[outside]:
                self._say("a row's answer depends on the virtual tokens or keys of its neighbours")
        return not outside or self._outside[outside]

    def _say(self, why: str) -> None:
        name = type(self._model).__name__
        notice(f"rows of different adapters do not share a forward of {name}: {why}. They are run apart")

    def sharing(self) -> Sharing:
        """Return which rows may share a batch in which text is written: a padded row must go on as alone."""
        if self._sharing is None:
            self._sharing = _sharing(self._model)
            if self._sharing != "free":
                which = (
                    "only prompts of one length share" if self._sharing == "length" else "no prompts share"
                )
                name = type(self._model).__name__
                notice(f"{which} a batch: what {name} writes depends on a row's padding or neighbours")
        return self._sharing


def _uncut(model: Any) -> set[str]:
    """Return the names of modules whose output has not one equal part for each row, in the rows' order.

    The last row of a batch is compared with itself alone. A module that a mixture calls for some rows only
    has no such part either.
    """
    rows = liveness.ids(model, ROWS, LENGTH)
    try:
        batch, alone = _outputs(model, rows), _outputs(model, rows[-1:])
    except Exception:  # every model fails in its own way; then its own forward will say so
        return set()
    found = batch.keys() | alone.keys()
    kinds = {liveness.alike(name) for name in found}
    wrong = {name for name in found if not _row_by_row(batch.get(name, []), alone.get(name, []))}
    names = [name for name, _ in model.named_modules()]
    return wrong | {name for name in names if name not in found and liveness.alike(name) in kinds}


def _outputs(model: Any, rows: torch.Tensor) -> dict[str, list[torch.Tensor]]:
    """Return the outputs of every module in one forward, in the order of its calls."""
    names = {id(module): name for name, module in model.named_modules()}
    outputs: dict[str, list[torch.Tensor]] = {}

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        first = output[0] if isinstance(output, tuple) and output else output
        if isinstance(first, torch.Tensor) and liveness.holds_site(module):
            outputs.setdefault(names[id(module)], []).append(first)

    handles = [module.register_forward_hook(after) for module in model.modules()]
    try:
        liveness.forward(model, rows, training=False)
    finally:
        for handle in handles:
            handle.remove()
    return outputs


def _row_by_row(batch: list[torch.Tensor], alone: list[torch.Tensor]) -> bool:
    return len(batch) == len(alone) and all(
        len(whole) == ROWS * len(row) and whole.shape[1:] == row.shape[1:] and _near(whole[-len(row) :], row)
        for whole, row in zip(batch, alone, strict=True)
        if whole.ndim and row.ndim
    )


def _sharing(model: Any) -> Sharing:
    """Return which rows may share a batch, by what a model writes after a short prompt."""
    length = min(WRITTEN, (context_length(model.config) or WRITTEN) - 3)
    rows = liveness.ids(model, 2, length)
    left = not getattr(model.config, "is_encoder_decoder", False)
    live = torch.ones_like(rows)
    live[1, slice(0, PADDED) if left else slice(length - PADDED, None)] = 0
    short = rows[1:, PADDED:] if left else rows[1:, :-PADDED]
    if _same(lambda: (_written(model, rows, live)[1:], _written(model, short)), otherwise=True):
        return "free"
    if _same(lambda: (_written(model, rows)[1:], _written(model, rows[1:])), otherwise=True):
        return "length"
    return "none"


def _written(model: Any, rows: torch.Tensor, live: torch.Tensor | None = None) -> torch.Tensor:
    """Return the logits (rows, 2, V) of the next two tokens."""
    live = torch.ones_like(rows) if live is None else live
    how = {"max_new_tokens": 2, "min_new_tokens": 2, "do_sample": False, "num_beams": 1}
    with liveness.quietly(model, training=False):
        out = model.generate(
            rows,
            attention_mask=live,
            output_logits=True,
            return_dict_in_generate=True,
            pad_token_id=0,
            eos_token_id=None,
            **how,
        )
    # transformers hands its logits out in fp32, however they were computed.
    return torch.stack(out.logits, 1).to(model.get_input_embeddings().weight.dtype)


def _same(compare: Callable[[], tuple[Any, Any]], *, otherwise: bool = False) -> bool:
    """Return whether two answers are equal up to rounding.  otherwise: what an error in them counts as."""
    try:
        ours, wanted = compare()
    except Exception:  # every model fails in its own way
        return otherwise
    return ours.shape == wanted.shape and _near(ours, wanted)


def _near(ours: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Return whether tensors differ by no more than the order of additions, or the rounding to 16 bits."""
    wide = wanted.float()
    away, size = (ours.float() - wide).abs().mean(), wide.abs().mean()
    return bool(away <= (1e-4 if wanted.dtype in (torch.float32, torch.float64) else 0.1) * size + 1e-7)


def joined(outputs: list[Any], counts: list[int]) -> Any:
    """Return outputs of rows that were run apart as that of one forward; what no row owns is left out.

    counts: how many rows each has.
    """
    first = outputs[0]
    if isinstance(first, torch.Tensor):
        # An encoder's states are longer with a prompt: then no tensor holds those of all rows.
        whole = all(
            o.ndim and len(o) == count and o.shape[1:] == first.shape[1:]
            for o, count in zip(outputs, counts, strict=True)
        )
        return torch.cat(outputs) if whole else None
    if isinstance(first, list):  # of the logits of task heads, one for each span
        return [part for output in outputs for part in output]
    if isinstance(first, tuple) and not hasattr(first, "_fields"):
        return tuple(joined(list(items), counts) for items in zip(*outputs, strict=True))
    if isinstance(first, ModelOutput):
        parts = {key: joined([output[key] for output in outputs], counts) for key in first}
        return type(first)(**{key: value for key, value in parts.items() if value is not None})
    return None
