"""Virtual tokens: vectors that adapters put around the rows, before the backbone sees them.

`arrangement` has where they stand; mask and positions match, and positions count live tokens. A hook before
the backbone puts placeholders among the ids, and a hook after the table replaces their vectors, so that the
model embeds its own tokens in its own way. A hook after the backbone takes the extra positions off the last
hidden state again, so that heads, labels and pooling keep their lengths. A decoder reads all states of its
encoder; there the decoder's mask is extended instead. With a filled cache the front is already in the cache,
and only mask and positions are extended. If an insert sets `reads`, the state of that trailing vector
replaces the state of the first token.
"""

import inspect
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers.modeling_utils import PreTrainedModel

from graft.base.arrangement import Arrangement, arranged
from graft.base.host import Host
from graft.core import anatomy
from graft.core.insert import KeyValues, VirtualTokens
from graft.core.positions import context_length, first_position
from graft.core.route import Route, current
from graft.core.site import Site
from graft.errors import AdapterError, SiteError, UsageError

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

    @property
    def width(self) -> int:
        """The number of places that all these vectors take."""
        return self.front.shape[1] + self.back.shape[1]


class VirtualTokenHooks(Host):
    """The two hooks of one model. There are none while no insert needs them."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._causal = anatomy.family(model) == "causal"
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
            return self.seats(name) + self._ahead(name)

        return max([0, *[taken(name) for name in names]])  # dynamo cannot trace max(..., default=0)

    def _around(self, name: str | None) -> list[Around]:
        """Return the vectors of each insert of an adapter."""
        return [i.around() for i in self._inserts.get(name or "", ()) if isinstance(i, VirtualTokens)]

    def _ahead(self, name: str | None) -> int:
        """Return how many position ids an adapter reserves before the first token."""
        inserts = self._inserts.get(name or "", ())
        return max([0, *[insert.ahead for insert in inserts if isinstance(insert, KeyValues)]])

    def seats(self, name: str | None) -> int:
        return sum(len(side) for pair in self._around(name) for side in pair)

    def cacheable(self, names: Iterable[str | None]) -> bool:
        if not any(name in self._inserts for name in names) or not self._causal:
            return True
        return "past_key_values" in inspect.signature(self._backbone().forward).parameters

    def _backbone(self) -> Any:
        """Return the module that takes ids and gives states; in an encoder-decoder the encoder."""
        model = self._model
        if getattr(model.config, "is_encoder_decoder", False):
            return model.get_encoder()
        backbone = model.base_model
        if backbone is model:  # a class that names its backbone otherwise than it keeps it, as Llama 4's
            backbone = next((m for m in model.children() if isinstance(m, PreTrainedModel)), model)
        return getattr(backbone, "decoder", backbone)  # OPT with a language head skips its OPTModel

    def _hooks(self) -> Any:
        model, backbone = self._model, self._backbone()
        yield backbone.register_forward_pre_hook(self._surround, with_kwargs=True)
        yield backbone.get_input_embeddings().register_forward_hook(self._embed)
        if getattr(model.config, "is_encoder_decoder", False):
            yield model.get_decoder().register_forward_pre_hook(self._extend_cross_mask, with_kwargs=True)
            return
        pooled = getattr(backbone, "pooler", None) is not None  # reads the first real token
        yield (backbone.encoder if pooled else backbone).register_forward_hook(self._cut)

    def _route(self) -> Route | None:
        """Return the Route of this forward if it has rows for an insert here."""
        route = current()
        return route if route and any(name in self._inserts for name in route.names) else None

    def _rows(self, route: Route, count: int, like: torch.Tensor) -> Rows:
        """Return what surrounds `count` rows of embeddings, in the dtype and width of `like` (..., d)."""
        fronts = []
        backs = []
        shifts = []
        for name, span in route.parts(count):
            rows, pairs = span.stop - span.start, self._around(name)
            empty = like.new_zeros(0, like.shape[-1])
            fronts.append((rows, torch.cat([empty, *(front.to(like.dtype) for front, _ in pairs)])))
            backs.append((rows, torch.cat([empty, *(back.to(like.dtype) for _, back in pairs)])))
            shifts += [self._ahead(name)] * rows
        front, live_front = _filled(fronts, left=True)
        back, live_back = _filled(backs, left=False)
        return Rows(front, back, live_front, live_back, torch.tensor(shifts, device=like.device)[:, None])

    def _surround(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Put the virtual tokens around ids or embeddings; extend mask and positions."""
        route = self._route()
        if route is None or (route.seated and not any(map(self._ahead, route.names))):
            return None
        given = inspect.signature(module.forward).bind(*args, **kwargs).arguments
        given = {**given.pop("kwargs", {}), **given}
        embeds, cache = given.get("inputs_embeds"), given.get("past_key_values")
        count, length = (given["input_ids"] if embeds is None else embeds).shape[:2]
        seen = cache.get_seq_length() if cache is not None else 0
        like = module.get_input_embeddings().weight if embeds is None else embeds
        rows = self._rows(route, count, like)
        mask = given.get("attention_mask")
        if not rows.width or route.seated:  # positions alone: the mask stays as it is, even a packed one
            self._check_fits(seen + length + self.positions(route.names))
            return (), given | self._position_ids(module, given, mask, rows.shift, seen, length)
        _check_cache(given)
        if mask is None:
            seen_text = max(0, seen - rows.front.shape[1])
            mask = torch.ones(count, length + seen_text, device=like.device)
        if mask.ndim != 2:
            raise UsageError(
                "a packed batch with virtual tokens", "rows of their own", "set data.pack to false"
            )
        live_back = rows.live_back[:, :0] if seen else rows.live_back
        places = arranged(rows.live_front, mask, live_back, causal=self._causal)
        given.pop("position_ids", None)
        if not seen:
            route.taps.text = places
            given |= self._extended(route, rows, places, given)
            length += rows.width
        self._check_fits(seen + length)
        given |= self._position_ids(module, given, places.mask, rows.shift, seen, length)
        return (), given | {"attention_mask": places.mask}

    def _extended(
        self, route: Route, rows: Rows, places: Arrangement, given: dict[str, Any]
    ) -> dict[str, Any]:
        """Return ids with placeholders, or embeddings, and token types, arranged like the rows.

        A model may count the positions of what is no padding, so placeholders are padding only where the mask
        hides them.
        """
        sides = rows.live_front, rows.live_back
        extra = {}
        if given.get("inputs_embeds") is not None:
            extra["inputs_embeds"] = places.taken(rows.front, given["inputs_embeds"], rows.back)
        else:
            ids = given["input_ids"]
            pad = getattr(self._model.config.get_text_config(), "pad_token_id", None) or 0
            holders = [torch.where(side > 0, int(pad == 0), pad).to(ids.dtype) for side in sides]
            extra["input_ids"] = places.taken(holders[0], ids, holders[1])
            route.taps.virtual = rows, places
        types = given.get("token_type_ids")
        if types is not None:
            zeros = [torch.zeros_like(side, dtype=types.dtype) for side in sides]
            extra["token_type_ids"] = places.taken(zeros[0], types, zeros[1])
        return extra

    def _embed(self, module: Any, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor | None:
        """Put the virtual tokens in the place of what the table has for their placeholders."""
        route = current()
        if route is None or route.taps.virtual is None:
            return None
        rows, places = route.taps.virtual
        route.taps.virtual = None
        P, T = rows.front.shape[1], places.text.shape[1]
        vectors = torch.cat([rows.front, rows.back], 1).to(output.dtype)
        which = torch.where(places.order < P, places.order, places.order - T).clamp(0, rows.width - 1)
        taken = vectors.gather(1, which[..., None].expand(-1, -1, output.shape[2]))
        text = (places.order >= P) & (places.order < P + T)
        return torch.where(text[..., None], output, taken)

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
        places: Arrangement = route.taps.text
        embedded, route.taps.text = route.taps.virtual is None, None
        if not embedded or not (isinstance(output, tuple) or hasattr(output, "last_hidden_state")):
            raise SiteError(
                f"{type(module).__name__} takes no virtual tokens: it does not embed its ids by its table, "
                "or returns no last hidden state",
                "a backbone that embeds ids and returns states",
                "use LoRA",
            )
        if isinstance(output, tuple):
            return (self._answered(route, places, output[0]), *output[1:])
        output.last_hidden_state = self._answered(route, places, output.last_hidden_state)
        if output.get("hidden_states") is not None:
            output.hidden_states = tuple(
                places.text_of(states) if states.ndim == 3 else states for states in output.hidden_states
            )
        return output

    def _answered(self, route: Route, places: Arrangement, states: torch.Tensor) -> torch.Tensor:
        """Return the states (rows, T, d) of the text, with a trailing one first where an adapter reads it."""
        if self._causal and states.shape[1] < places.order.shape[1]:
            return states  # the model has kept the last ones alone, which are text
        text = places.text_of(states)
        parts = [(rows, self._read_index(name)) for name, rows in route.parts(len(text))]
        if all(index is None for _, index in parts):
            return text
        back = places.back_of(states)
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
        rows = self._rows(route, len(states), states)
        mask = kwargs.get("encoder_attention_mask")
        if mask is None:
            mask = torch.ones(len(states), states.shape[1] - rows.width, device=states.device)
        places = arranged(rows.live_front, mask, rows.live_back, causal=False)
        return args, kwargs | {"encoder_attention_mask": places.mask}


def _check_cache(given: dict[str, Any]) -> None:
    """Raise AdapterError for a state that does not tell whether the virtual tokens are in it already."""
    if any(given.get(name) is not None for name in ("cache_params", "state")):
        raise AdapterError(
            "virtual tokens with a model that keeps a state, not keys and values",
            "forwards over whole rows",
            "pass use_cache=False",
        )


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
