"""Virtual tokens: vectors that adapters put around the rows, before the backbone sees them.

    [filler; front of that row; E(ids); back of that row; filler]        mask and positions to match

A hook before the backbone turns ids into such embeddings and extends the attention mask; positions count live
tokens. A hook after it takes the extra positions off the last hidden state again, so that heads, labels and
pooling keep their lengths. A decoder reads all states of its encoder; there the decoder's mask is extended
instead. With a filled cache the front is already in the cache, and only mask and positions are extended. If
an insert sets `reads`, the state of that trailing vector replaces the state of the first token.
"""

import inspect
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import nn

from graft.base.host import Host
from graft.core.insert import KeyValues, VirtualTokens
from graft.core.positions import context_length, first_position
from graft.core.route import Route, current
from graft.core.site import Site
from graft.errors import UsageError

Around = tuple[torch.Tensor, torch.Tensor]  # front (p, d), back (q, d)


class Rows(NamedTuple):
    """What surrounds every row of a forward, filled up to the longest.

    front (rows, p, d), back (rows, q, d); live_front, live_back: 1 where a vector is real; shift (rows, 1):
    position ids that the row reserves before its first token.
    """

    front: torch.Tensor
    back: torch.Tensor
    live_front: torch.Tensor
    live_back: torch.Tensor
    shift: torch.Tensor


class VirtualTokenHooks(Host):
    """The two hooks of one model. There are none while no insert needs them."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._inserts: dict[str, list[VirtualTokens | KeyValues]] = {}
        self._handles: list[Any] = []

    def add(self, name: str, site: Site, insert: VirtualTokens | KeyValues) -> None:
        if isinstance(insert, KeyValues) and not insert.ahead:
            return
        if not self._inserts:
            self._handles = list(self._hooks())
        self._inserts.setdefault(name, []).append(insert)

    def remove(self, name: str) -> None:
        if self._inserts.pop(name, None) is not None and not self._inserts:
            for handle in self._handles:
                handle.remove()

    def positions(self, names: Iterable[str | None]) -> int:
        def taken(name: str | None) -> int:
            return sum([len(side) for pair in self._around(name) for side in pair]) + self._ahead(name)

        return max([0, *[taken(name) for name in names]])  # dynamo cannot trace max(..., default=0)

    def _around(self, name: str | None) -> list[Around]:
        """Return the vectors of each insert of an adapter."""
        return [i.around() for i in self._inserts.get(name or "", ()) if isinstance(i, VirtualTokens)]

    def _ahead(self, name: str | None) -> int:
        """Return how many position ids an adapter reserves before the first token."""
        inserts = self._inserts.get(name or "", ())
        return max([0, *[insert.ahead for insert in inserts if isinstance(insert, KeyValues)]])

    def _hooks(self) -> Any:
        model = self._model
        if getattr(model.config, "is_encoder_decoder", False):
            yield model.get_encoder().register_forward_pre_hook(self._surround, with_kwargs=True)
            yield model.get_decoder().register_forward_pre_hook(self._extend_cross_mask, with_kwargs=True)
            return
        backbone = model.base_model
        backbone = getattr(backbone, "decoder", backbone)  # OPT with a language head skips its OPTModel
        pooled = getattr(backbone, "pooler", None) is not None  # reads the first real token
        yield backbone.register_forward_pre_hook(self._surround, with_kwargs=True)
        yield (backbone.encoder if pooled else backbone).register_forward_hook(self._cut)

    def _route(self) -> Route | None:
        """Return the Route of this forward if it has rows for an insert here."""
        route = current()
        return route if route and any(name in self._inserts for name in route.names) else None

    def _rows(self, route: Route, like: torch.Tensor) -> Rows:
        """Return what surrounds the rows of `like` (rows, T, d), in its dtype."""
        fronts = []
        backs = []
        shifts = []
        for name, span in route.parts(len(like)):
            count, pairs = span.stop - span.start, self._around(name)
            empty = like.new_zeros(0, like.shape[2])
            fronts.append((count, torch.cat([empty, *(front.to(like.dtype) for front, _ in pairs)])))
            backs.append((count, torch.cat([empty, *(back.to(like.dtype) for _, back in pairs)])))
            shifts += [self._ahead(name)] * count
        front, live_front = _filled(fronts, left=True)
        back, live_back = _filled(backs, left=False)
        return Rows(front, back, live_front, live_back, torch.tensor(shifts, device=like.device)[:, None])

    def _surround(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Turn ids into embeddings with the virtual tokens around them; extend mask and positions."""
        route = self._route()
        if route is None:
            return None
        given = inspect.signature(module.forward).bind(*args, **kwargs).arguments
        given = {**given.pop("kwargs", {}), **given}
        embeds, cache = given.get("inputs_embeds"), given.get("past_key_values")
        if embeds is None:
            embeds = module.get_input_embeddings()(given.pop("input_ids"))
        count, length, _ = embeds.shape
        seen = cache.get_seq_length() if cache is not None else 0
        rows = self._rows(route, embeds)
        front, back = rows.front, rows.back
        mask = given.get("attention_mask")
        if not front.shape[1] + back.shape[1]:  # positions alone: the mask stays as it is, even a packed one
            self._check_fits(seen + length + self.positions(route.names))
            positions = self._position_ids(module, given, mask, rows.shift, seen, length)
            return (), given | {"inputs_embeds": embeds, **positions}
        if mask is None:
            mask = torch.ones(count, length + max(0, seen - front.shape[1]), device=embeds.device)
        if mask.ndim != 2:
            raise UsageError(
                "a packed batch with virtual tokens", "rows of their own", "set data.pack to false"
            )
        mask = torch.cat([rows.live_front.to(mask.dtype), mask], 1)
        if not seen:
            embeds = torch.cat([front, embeds, back], 1)
            mask = torch.cat([mask, rows.live_back.to(mask.dtype)], 1)
            route.taps.text = (front.shape[1], length)
        given.pop("position_ids", None)
        self._check_fits(seen + embeds.shape[1])
        extra = self._position_ids(module, given, mask, rows.shift, seen, embeds.shape[1])
        types = given.get("token_type_ids")
        if types is not None and not seen:
            sides = [types.new_zeros(count, side.shape[1]) for side in (front, back)]
            extra["token_type_ids"] = torch.cat([sides[0], types, sides[1]], 1)
        return (), given | {"inputs_embeds": embeds, "attention_mask": mask} | extra

    def _position_ids(
        self, module: Any, given: dict[str, Any], mask: Any, shift: torch.Tensor, seen: int, length: int
    ) -> dict[str, Any]:
        """Return {"position_ids"} for a module that takes them, shifted by what the rows reserve.

        The ids are those that were given, or they count live tokens.
        """
        if "position_ids" not in inspect.signature(module.forward).parameters:
            return {}
        ids, first = given.get("position_ids"), first_position(self._model.config)
        if ids is None and mask is not None and mask.ndim == 2:
            ids = (mask.long().cumsum(1) - 1).clamp(0)[:, -length:] + first
        elif ids is None:
            ids = torch.arange(seen, seen + length, device=shift.device)[None] + first
        return {"position_ids": ids + shift}

    def _check_fits(self, length: int) -> None:
        """Raise UsageError for more positions than a table has, where torch would only name an index."""
        limit = context_length(self._model.config)
        tables = (n for n, m in self._model.named_modules() if isinstance(m, nn.Embedding))
        if limit and length > limit and any(re.search("position|wpe", name) for name in tables):
            raise UsageError(
                f"{length} positions with the virtual tokens",
                f"at most {limit}, the positions of this base",
                "lower data.max_length or the number of virtual tokens",
            )

    def _cut(self, module: Any, args: tuple[Any, ...], output: Any) -> Any:
        """Take the virtual tokens off the states again."""
        route = current()
        if route is None or route.taps.text is None:
            return None
        first, length = route.taps.text
        route.taps.text = None

        def text(states: torch.Tensor) -> torch.Tensor:
            return states[:, first : first + length]

        def answered(states: torch.Tensor) -> torch.Tensor:
            return self._with_read_states(route, text(states), states[:, first + length :])

        if isinstance(output, tuple):
            return (answered(output[0]), *output[1:])
        output.last_hidden_state = answered(output.last_hidden_state)
        if output.get("hidden_states") is not None:
            output.hidden_states = tuple(text(states) for states in output.hidden_states)
        return output

    def _with_read_states(self, route: Route, text: torch.Tensor, back: torch.Tensor) -> torch.Tensor:
        """Return the states `text` (rows, T, d), with a state of `back` first where an adapter reads one."""
        parts = [(rows, self._read_index(name)) for name, rows in route.parts(len(text))]
        if all(index is None for _, index in parts):
            return text
        answers = []
        for rows, index in parts:
            first = text[rows, :1] if index is None else back[rows, index : index + 1]
            answers.append(torch.cat([first, text[rows, 1:]], 1))
        return torch.cat(answers)

    def _read_index(self, name: str | None) -> int | None:
        """Return the index of the trailing vector that an adapter reads, among those of all its inserts."""
        before = 0
        for insert in self._inserts.get(name or "", ()):
            if isinstance(insert, VirtualTokens):
                if insert.reads is not None:
                    return before + insert.reads
                before += len(insert.around()[1])
        return None

    def _extend_cross_mask(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Let a decoder see the virtual tokens among the encoder's states."""
        if (anywhere := current()) is not None:
            anywhere.taps.text = None
        route, states = self._route(), kwargs.get("encoder_hidden_states")
        if route is None or states is None:
            return None
        rows = self._rows(route, states)
        mask = kwargs.get("encoder_attention_mask")
        if mask is None:
            length = states.shape[1] - rows.front.shape[1] - rows.back.shape[1]
            mask = torch.ones(len(states), length, device=states.device)
        whole = torch.cat([rows.live_front.to(mask.dtype), mask, rows.live_back.to(mask.dtype)], 1)
        return args, kwargs | {"encoder_attention_mask": whole}


def _filled(parts: list[tuple[int, torch.Tensor]], *, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (vectors (rows, width, d), live (rows, width)) of spans with vectors of different length.

    parts: (rows of the span, its vectors (n, d)).  left: on which side shorter ones are filled up.
    """
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
