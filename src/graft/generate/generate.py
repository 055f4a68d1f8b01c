"""Generation: prompts in, only the new text out, in their order, rows with different adapters side by side.

The engine writes all texts of causal models. Encoder-decoders, models that keep a state, and adapters that
need the whole text at every step go through transformers' own loop (`plain`), with the same settings.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch

from graft.data.templates import Prompt
from graft.errors import UsageError, one_of
from graft.generate.cached import CachedStepper
from graft.generate.engine import Engine
from graft.generate.fits import fits
from graft.generate.plain import write_plainly
from graft.generate.prompts import encoded, end_tokens, is_ids, rooms
from graft.generate.request import Completion, Request
from graft.generate.sampling import Sampling, is_whole, require
from graft.generate.stepper import Stepper


class Writer(Protocol):
    """What generation needs of a base.

    routed: inside the block the model's rows follow these adapters, in the order that is yielded; `seated`
    if their virtual tokens are in the cache already.
    positions: how many positions of the context these adapters take, besides the tokens.
    seats: how many of them are in the cache.
    in_slots: whether text under an adapter can be written in a slot of a shared cache.
    native_stepper, in_native: the kernels' own stepper, if there is one, and whether it takes an adapter;
    `exact`: without fixed point.
    cacheable: whether text can be written with a cache at all under these adapters.
    mixable: whether rows of these adapters may share a batch; it raises for adapters that must be used alone.
    together: the same, False where it would raise.
    sharing: which rows may share a batch: "free", "length" (those of one length) or "none".
    """

    model: Any
    tokenizer: Any
    name: str
    family: str
    adapters: Any

    @property
    def device(self) -> torch.device: ...

    def routed(
        self, rows: Sequence[str | None], *, seated: bool = False
    ) -> AbstractContextManager[list[int]]: ...

    def positions(self, names: Sequence[str | None]) -> int: ...

    def seats(self, name: str | None) -> int: ...

    def in_slots(self, name: str | None) -> bool: ...

    def native_stepper(self, *, exact: bool = False) -> Stepper | None: ...

    def in_native(self, name: str | None) -> bool: ...

    def cacheable(self, names: Sequence[str | None]) -> bool: ...

    def mixable(self, names: Sequence[str | None]) -> bool: ...

    def together(self, names: Sequence[str | None]) -> bool: ...

    def sharing(self) -> str: ...


def generate(
    base: Writer,
    prompts: Sequence[Prompt],
    adapters: Sequence[str | None],
    *,
    batch_size: int = 8,
    max_cache_tokens: int | None = None,
    exact: bool = False,
    on_text: Callable[[int, str], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
    **sampling: Any,
) -> list[str]:
    """Return the continuation of each prompt, without the prompt and without the stop.

    prompts: texts (used as they are, with the tokenizer's start token), message lists (chat template), or
    {"messages": ..., "tools": ...} where the chat template shows tools; or lists of ids.
    adapters: one name or None per prompt.
    batch_size: texts that are written at once.  max_cache_tokens: positions of the cache, in all of these
    together; prompts wait for room.
    exact: multiply packed weights in fp32, as training does, also where the kernels are faster in fixed point
    of 15 bits (on processors with AVX2 or AVX-512). It is always so where log-probabilities are asked for.
    on_text: called with (row, piece) as the texts grow; the pieces of a row are its text.
    progress: called with (texts that have ended, texts) when some have.
    sampling: the fields of `Sampling`. Raises UsageError for bad settings, DataError for a prompt beyond the
    context.
    """
    found = complete(
        base,
        prompts,
        adapters,
        batch_size=batch_size,
        max_cache_tokens=max_cache_tokens,
        exact=exact,
        on_text=on_text,
        progress=progress,
        **sampling,
    )
    return [completion.text for completion in found]


def complete(
    base: Writer,
    prompts: Sequence[Prompt],
    adapters: Sequence[str | None],
    *,
    batch_size: int = 8,
    max_cache_tokens: int | None = None,
    exact: bool = False,
    on_text: Callable[[int, str], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
    **sampling: Any,
) -> list[Completion]:
    """Return what `generate` does, with tokens, log-probabilities and the reason of each end."""
    for keyword in sampling:
        one_of("keyword of generate", keyword, Sampling.__dataclass_fields__)
    how = Sampling(**sampling)
    _check(base, prompts, batch_size, max_cache_tokens)
    tokens = encoded(base, prompts)
    chat = any(not isinstance(prompt, str) and not is_ids(prompt) for prompt in prompts)
    ends = frozenset([*end_tokens(base, how.stop, chat=chat), *how.stop_token_ids])
    room = rooms(base, tokens, adapters, how.max_new_tokens)
    base.mixable(adapters)
    seed = int(torch.randint(2**62, ())) if how.do_sample and how.seed is None else 0
    requests = [
        Request(
            ids,
            adapters[row],
            how,
            ends,
            room[row],
            index=row,
            seed=seed,
            tokenizer=base.tokenizer,
            alone=base.family == "seq2seq",
            on_text=_row_of(on_text, row),
        )
        for row, ids in enumerate(tokens)
    ]
    exact = exact or how.logprobs is not None
    with torch.no_grad(), evaluating(base):
        for done in write(base, requests, batch_size, max_cache_tokens, exact=exact):
            if progress is not None:
                progress(done, len(requests))
    return [request.completion for request in requests if request.completion is not None]


def _row_of(on_text: Callable[[int, str], None] | None, row: int) -> Callable[[str], None] | None:
    return None if on_text is None else lambda piece: on_text(row, piece)


def write(
    base: Writer,
    requests: Sequence[Request],
    batch_size: int = 8,
    max_cache_tokens: int | None = None,
    *,
    exact: bool = False,
) -> Iterator[int]:
    """Continue all requests: in the engine what can go there, and the others on the plain path.

    Yields how many texts have ended, when some have.
    """
    # Long prompts first, so that a lack of memory shows at once.
    left, done = sorted(requests, key=lambda request: -len(request.prompt)), 0
    for found, takes in steppers(base, exact) if requests else ():
        engine = Engine(found, max_rows=batch_size, max_cache_tokens=max_cache_tokens)
        fitting = {name: takes(name) for name in {request.adapter for request in left}}
        for request in left:
            if fitting[request.adapter]:
                engine.submit(request)
        left = [request for request in left if not fitting[request.adapter]]
        for _ in engine.run():
            done += 1
            yield done
        if not left:
            return
        del found, takes, engine  # its cache makes room for the next one's
    for ended in write_plainly(base, left, batch_size, max_cache_tokens) if left else ():
        done += ended
        yield done


def steppers(base: Writer, exact: bool = False) -> Iterator[tuple[Stepper, Callable[[str | None], bool]]]:
    """Yield what computes a base's logits in slots, the fastest first, and whether it takes an adapter.

    The base must be in evaluation mode.
    """
    if base.family != "causal":
        return
    native = base.native_stepper(exact=exact)
    if native is not None:
        yield native, base.in_native
        native = None  # whoever took it may have let it go
    if fits(base):
        yield CachedStepper(base), base.in_slots


@contextmanager
def evaluating(base: Writer) -> Iterator[None]:
    """Put the model and all adapters into evaluation mode for the block, and every module back afterwards."""
    roots = [base.model, *(insert for adapter in base.adapters.values() for _, insert in adapter.inserts)]
    training = [module for root in roots for module in root.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _check(base: Writer, prompts: Sequence[Prompt], batch_size: int, max_cache_tokens: int | None) -> None:
    if isinstance(prompts, str):
        raise UsageError("generate was given one text", "a list of prompts", "write [prompt]")
    if base.tokenizer is None:
        raise UsageError(
            f"{base.name} has no tokenizer",
            "a base with one",
            "load the model from a folder with a tokenizer",
        )
    if base.family not in ("causal", "seq2seq"):
        raise UsageError(
            f"{base.name} is a {base.family} model",
            "a causal or encoder-decoder model",
            "load one that writes",
        )
    require("batch_size", batch_size, "a whole number above 0", is_whole(batch_size, 1))
    limited = max_cache_tokens is None or is_whole(max_cache_tokens, 1)
    require("max_cache_tokens", max_cache_tokens, "None, or a whole number above 0", limited)
