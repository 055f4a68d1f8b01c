"""Virtual tokens: vectors that adapters put around the rows, before the backbone sees them.

    [filler; front of that row; E(ids); back of that row; filler]        mask and positions to match

A hook before the backbone turns ids into such embeddings and extends the attention mask; positions count live tokens. A
hook behind it takes the extra positions off the last hidden state again, so that heads, labels and pooling keep their
lengths (the states of an encoder that a decoder reads stay whole: the decoder's mask is extended instead). With a
filled cache the front lies in the cache: mask and positions alone are extended. The state of a vector behind the text
that an insert `reads` takes the place of the first token's.
"""

import inspect
import re
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from graft.core.insert import Insert
from graft.core.positions import first_position
from graft.core.route import Route, current
from graft.errors import UsageError

Around = tuple[torch.Tensor, torch.Tensor]  # front (p, d), back (q, d)


class Virtual:
    """The two hooks of one model; there are none while no insert needs them."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._inserts: dict[str, list[Insert]] = {}
        self._handles: list[Any] = []

    def add(self, name: str, insert: Insert) -> None:
        """Seat an insert that gives vectors (`around`), or that takes positions before the first token (`ahead`)."""
        if not self._inserts:
            self._handles = list(self._hooks())
        self._inserts.setdefault(name, []).append(insert)

    def remove(self, name: str) -> None:
        """Unseat an adapter."""
        if self._inserts.pop(name, None) is not None and not self._inserts:
            for handle in self._handles:
                handle.remove()

    def positions(self, names: Iterable[str | None]) -> int:
        """The most positions that one of these adapters takes."""

        def own(inserts: Sequence[Insert]) -> int:
            pairs = [pair for pair in (insert.around() for insert in inserts) if pair is not None]
            return sum(len(side) for pair in pairs for side in pair) + max(
                (i.ahead for i in inserts), default=0
            )

        return max((own(self._inserts.get(name or "", [])) for name in names), default=0)

    def _hooks(self) -> Any:
        model = self._model
        if getattr(model.config, "is_encoder_decoder", False):
            yield model.get_encoder().register_forward_pre_hook(self._enter, with_kwargs=True)
            yield model.get_decoder().register_forward_pre_hook(self._read, with_kwargs=True)
            return
        backbone = model.base_model
        backbone = getattr(backbone, "decoder", backbone)  # OPT with a language head passes its OPTModel by
        pooled = getattr(backbone, "pooler", None) is not None  # reads the first real token
        yield backbone.register_forward_pre_hook(self._enter, with_kwargs=True)
        yield (backbone.encoder if pooled else backbone).register_forward_hook(self._leave)

    def _spread(self, route: Route, width: int, like: torch.Tensor, k: int) -> tuple[torch.Tensor, ...]:
        """(front, back, live front, live back, shift), a row each; k: rows of the module to one of the route."""
        fronts, backs, shifts = [], [], []
        for name, a, b in route.spans:
            inserts = self._inserts.get(name or "", [])
            pairs = [pair for pair in (insert.around() for insert in inserts) if pair is not None]
            empty = like.new_zeros(0, width)
            fronts.append(((b - a) * k, torch.cat([empty, *(front.to(like.dtype) for front, _ in pairs)])))
            backs.append(((b - a) * k, torch.cat([empty, *(back.to(like.dtype) for _, back in pairs)])))
            shifts += [max((insert.ahead for insert in inserts), default=0)] * ((b - a) * k)
        front, live_front = _filled(fronts, left=True)
        back, live_back = _filled(backs, left=False)
        return front, back, live_front, live_back, torch.tensor(shifts, device=like.device)[:, None]

    def _enter(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        route = current()
        if route is None or not any(name in self._inserts for name, _, _ in route.spans):
            return None
        given = inspect.signature(module.forward).bind(*args, **kwargs).arguments
        given = {**given.pop("kwargs", {}), **given}
        embeds, cache = given.get("inputs_embeds"), given.get("past_key_values")
        if embeds is None:
            embeds = module.get_input_embeddings()(given.pop("input_ids"))
        rows, length, width = embeds.shape
        seen = cache.get_seq_length() if cache is not None else 0
        front, back, live_front, live_back, shift = self._spread(route, width, embeds, rows // route.rows)
        mask = given.get("attention_mask")
        if (
            not front.shape[1] + back.shape[1]
        ):  # positions alone: the mask stays what it is, also a packed one
            self._fits(seen + length + self.positions(name for name, _, _ in route.spans))
            return (), given | {
                "inputs_embeds": embeds,
                **self._positions(module, given, mask, shift, seen, length),
            }
        if mask is None:
            mask = torch.ones(rows, length + max(0, seen - front.shape[1]), device=embeds.device)
        if mask.ndim != 2:
            raise UsageError(
                "a packed batch with virtual tokens", "rows of their own", "set data.pack to false"
            )
        mask = torch.cat([live_front.to(mask.dtype), mask], 1)
        if seen:
            length_now = length
        else:
            embeds, mask = torch.cat([front, embeds, back], 1), torch.cat([mask, live_back.to(mask.dtype)], 1)
            length_now = embeds.shape[1]
            route.taps["virtual"] = (front.shape[1], length)
        given.pop("position_ids", None)
        self._fits(seen + length_now)
        extra = self._positions(module, given, mask, shift, seen, length_now)
        if given.get("token_type_ids") is not None and not seen:
            zeros = given["token_type_ids"].new_zeros
            extra["token_type_ids"] = torch.cat(
                [zeros(rows, front.shape[1]), given["token_type_ids"], zeros(rows, back.shape[1])], 1
            )
        return (), given | {"inputs_embeds": embeds, "attention_mask": mask} | extra

    def _positions(
        self, module: Any, given: dict[str, Any], mask: Any, shift: torch.Tensor, seen: int, length: int
    ) -> dict[str, Any]:
        """{"position_ids"} for a module that takes them: given ones or live tokens counted, shifted by what the rows
        keep before the first token."""
        if "position_ids" not in inspect.signature(module.forward).parameters:
            return {}
        own = given.get("position_ids")
        if own is None and mask is not None and mask.ndim == 2:
            own = (mask.long().cumsum(1) - 1).clamp(0)[:, -length:] + first_position(self._model.config)
        elif own is None:
            own = torch.arange(seen, seen + length, device=shift.device)[None] + first_position(
                self._model.config
            )
        return {"position_ids": own + shift}

    def _fits(self, length: int) -> None:
        """A table of positions has an end, and beyond it an index error would be all that is said."""
        limit = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        tables = (n for n, m in self._model.named_modules() if isinstance(m, nn.Embedding))
        if limit and length > limit and any(re.search("position|wpe", name) for name in tables):
            raise UsageError(
                f"{length} positions with the virtual tokens",
                f"at most {limit}, the positions of this base",
                "lower data.max_length or the number of virtual tokens",
            )

    def _leave(self, module: Any, args: tuple[Any, ...], output: Any) -> Any:
        route = current()
        place = route.taps.pop("virtual", None) if route is not None else None
        if place is None:
            return None
        first, length = place
        cut = lambda states: states[:, first : first + length]
        show = lambda states: self._shown(route, cut(states), states[:, first + length :])
        if isinstance(output, tuple):
            return (show(output[0]), *output[1:])
        output.last_hidden_state = show(output.last_hidden_state)
        if output.get("hidden_states") is not None:
            output.hidden_states = tuple(cut(states) for states in output.hidden_states)
        return output

    def _shown(self, route: Route, text: torch.Tensor, behind: torch.Tensor) -> torch.Tensor:
        """Last states `text` (rows, T, d), where a row's first is the one of `behind` that its adapter reads."""
        places = [self._read_at(name) for name, _, _ in route.spans]
        if all(place is None for place in places):
            return text
        k, parts = len(text) // route.rows, []
        for (_, a, b), place in zip(route.spans, places, strict=True):
            own = text[a * k : b * k]
            first = own[:, :1] if place is None else behind[a * k : b * k, place : place + 1]
            parts.append(torch.cat([first, own[:, 1:]], 1))
        return torch.cat(parts)

    def _read_at(self, name: str | None) -> int | None:
        """Where among the vectors behind its rows an adapter reads, if it does."""
        inserts = self._inserts.get(name or "", [])
        reader = next((i for i, insert in enumerate(inserts) if insert.reads is not None), None)
        if reader is None:
            return None
        passed = [pair for pair in (insert.around() for insert in inserts[:reader]) if pair is not None]
        return (inserts[reader].reads or 0) + sum(len(back) for _, back in passed)

    def _read(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Let a decoder see the virtual tokens among the encoder's states."""
        route, states = current(), kwargs.get("encoder_hidden_states")
        if route is not None:
            route.taps.pop("virtual", None)
        if route is None or states is None or not any(name in self._inserts for name, _, _ in route.spans):
            return None
        front, back, live_front, live_back, _ = self._spread(
            route, states.shape[2], states, len(states) // route.rows
        )
        mask = kwargs.get("encoder_attention_mask")
        if mask is None:
            mask = torch.ones(
                len(states), states.shape[1] - front.shape[1] - back.shape[1], device=states.device
            )
        whole = torch.cat([live_front.to(mask.dtype), mask, live_back.to(mask.dtype)], 1)
        return args, kwargs | {"encoder_attention_mask": whole}


def _filled(parts: list[tuple[int, torch.Tensor]], *, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(vectors (rows, width, d), live (rows, width)) of spans with vectors of different length."""
    width = max(len(vectors) for _, vectors in parts)
    rows, live = [], []
    for count, vectors in parts:
        filler = vectors.new_zeros(width - len(vectors), vectors.shape[1])
        real = torch.ones(width, device=vectors.device)
        real[: width - len(vectors)] = 0 if left else 1
        if not left:
            real[len(vectors) :] = 0
        row = torch.cat([filler, vectors] if left else [vectors, filler])
        rows.append(row[None].expand(count, -1, -1))
        live.append(real[None].expand(count, -1))
    return torch.cat(rows), torch.cat(live)
