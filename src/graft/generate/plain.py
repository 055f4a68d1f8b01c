"""The plain path: transformers' own loop, for models that the engine's cache does not fit.

These are encoder-decoders, models that keep a state beside or instead of keys and values, and adapters that
need the whole text at every step. Tokens are chosen by the same code as in the engine: transformers is handed
logits in which the chosen token alone is left.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers.generation import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from graft.generate.batches import batches
from graft.generate.choose import MINUS, Chooser
from graft.generate.request import Request, too_long

NO_TOKEN = 2**31 - 1  # ends are found here; for None transformers would take the model's own


def write_plainly(
    base: Any, requests: Sequence[Request], batch_size: int, max_cache_tokens: int | None = None
) -> Iterator[int]:
    """Continue all requests, in batches of up to `batch_size`. Yields the number of texts of each.

    max_cache_tokens: positions of a batch. Raises UsageError for a request that needs more.
    """
    rooms = [request.limit for request in requests]
    prompts = [list(request.prompt) for request in requests]
    names = [request.adapter for request in requests]
    cache = base.cacheable(names)
    for rows, room in batches(base, names, prompts, rooms, batch_size):
        size = len(rows)
        if max_cache_tokens is not None:
            longest = max((requests[row] for row in rows), key=lambda request: len(request.prompt))
            size = max_cache_tokens // (len(longest.prompt) + room)
            if not size:
                raise too_long(longest, max_cache_tokens)
        for i in range(0, len(rows), size):
            _batch(base, [requests[row] for row in rows[i : i + size]], room, cache)
            yield len(rows[i : i + size])


def settings(new: int, pad: int, *, cache: bool) -> GenerationConfig:
    """Return transformers' settings for one batch, with every field that a model's defaults could set."""
    return GenerationConfig(
        max_new_tokens=new,
        min_length=0,
        do_sample=False,
        temperature=1.0,
        top_p=1.0,
        top_k=50,  # transformers' default; others warn when not sampling
        num_beams=1,
        num_return_sequences=1,
        early_stopping=False,
        length_penalty=1.0,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        use_cache=cache,
        return_dict_in_generate=False,
        eos_token_id=NO_TOKEN,
        pad_token_id=pad,
    )


def _batch(base: Any, requests: list[Request], room: int, cache: bool) -> None:
    """Call the model's generate once. `base.routed` gives the order in which rows must stand."""
    seq2seq = base.family == "seq2seq"
    width = max(len(request.prompt) for request in requests)
    tokenizer = base.tokenizer
    pad = getattr(tokenizer, "pad_token_id", None)
    pad = pad if pad is not None else min(requests[0].ends, default=0)
    ids = torch.full((len(requests), width), pad)
    live = torch.zeros_like(ids)
    for row, request in enumerate(requests):
        length = len(request.prompt)
        place = slice(0, length) if seq2seq else slice(width - length, width)
        ids[row, place] = torch.tensor(request.prompt)
        live[row, place] = 1
    with base.routed([request.adapter for request in requests]) as order:
        loop = _Loop([requests[row] for row in order])
        base.model.generate(
            input_ids=ids[order].to(base.device),
            attention_mask=live[order].to(base.device),
            generation_config=settings(room, pad, cache=cache),
            logits_processor=LogitsProcessorList([loop]),
            stopping_criteria=StoppingCriteriaList([_Ended(loop)]),
        )


class _Loop(LogitsProcessor):
    """Chooses the tokens of transformers' loop."""

    def __init__(self, requests: list[Request]) -> None:
        self.requests = requests
        self._live: list[int] = []
        self._chooser: Chooser | None = None

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        live = [row for row, request in enumerate(self.requests) if not request.finished]
        if self._chooser is None or live != self._live:
            self._live = live
            self._chooser = Chooser([self.requests[row] for row in live], scores.shape[1], scores.device)
        logits = scores.float()
        tokens, chosen = self._chooser.choose(logits[live] if len(live) < len(logits) else logits)
        for row, token in zip(live, tokens, strict=True):
            self.requests[row].take(token)
        left = torch.full_like(scores, MINUS)
        left[:, 0] = 0  # of rows that have ended
        left[live] = MINUS
        left[live, chosen] = 0
        return left


class _Ended(StoppingCriteria):
    """Ends the rows whose requests have ended."""

    def __init__(self, loop: _Loop) -> None:
        self._loop = loop

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        return torch.tensor([request.finished for request in self._loop.requests], device=input_ids.device)
