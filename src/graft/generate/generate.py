"""Generation: prompts in, only the new text out, in their order, rows with different adapters side by side.

Prompts are sorted by length and left-padded, so that every row's last token stands at the same place and
positions count live tokens only. A stop is a token (the end tokens of model and template) or a string, which
is cut off.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from transformers import PreTrainedTokenizerBase
from transformers.generation import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from graft.core.positions import context_length
from graft.data.rows import BadRow
from graft.data.templates import Prompt, Template, prompt_ids, source
from graft.errors import DataError, UsageError, listed, notice, one_of
from graft.generate.batches import batches


class Writer(Protocol):
    """What generation needs of a base.

    routed: inside the block the model's rows follow these adapters, in the order that is yielded.
    positions: how many positions of the context these adapters take, besides the tokens.
    cacheable: whether text can be written with a cache under these adapters.
    mixable: whether rows of these adapters may share a batch.
    sharing: which rows may share a batch: "free", "length" (those of one length) or "none".
    """

    model: Any
    tokenizer: Any
    name: str
    family: str
    adapters: Any

    @property
    def device(self) -> torch.device: ...

    def routed(self, rows: Sequence[str | None]) -> AbstractContextManager[list[int]]: ...

    def positions(self, names: Sequence[str | None]) -> int: ...

    def cacheable(self, names: Sequence[str | None]) -> bool: ...

    def mixable(self, names: Sequence[str | None]) -> bool: ...

    def sharing(self) -> str: ...


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen and when a text ends. Raises UsageError for values that mean nothing.

    temperature: logits are divided by it.  top_p: smallest set of tokens with that much probability.
    top_k: only the k likeliest, 0 for all.  seed: same seed, prompts and settings give the same texts.
    """

    max_new_tokens: int = 128
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = field(default=())
    seed: int | None = None

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        object.__setattr__(self, "stop", stop)
        _require(
            "max_new_tokens", self.max_new_tokens, "a whole number above 0", _whole(self.max_new_tokens, 1)
        )
        _require(
            "temperature",
            self.temperature,
            "a finite number above 0",
            _between(self.temperature, 0, math.inf),
        )
        _require("top_p", self.top_p, "above 0 and at most 1", _between(self.top_p, 0, 1) or self.top_p == 1)
        _require("top_k", self.top_k, "0 (off) or a whole number above it", _whole(self.top_k, 0))
        _require(
            "stop", stop, "texts that are not empty", all(isinstance(text, str) and text for text in stop)
        )

    def config(self, ends: list[int], pad: int, room: int, cache: bool = True) -> GenerationConfig:
        """Return transformers' settings for one batch, with every field that a model's defaults could set."""
        return GenerationConfig(
            max_new_tokens=min(self.max_new_tokens, room),
            min_length=0,
            do_sample=self.do_sample,
            temperature=self.temperature if self.do_sample else 1.0,
            top_p=self.top_p if self.do_sample else 1.0,
            top_k=self.top_k
            if self.do_sample
            else 50,  # transformers' default; others warn when not sampling
            num_beams=1,
            num_return_sequences=1,
            early_stopping=False,
            length_penalty=1.0,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            use_cache=cache,
            return_dict_in_generate=False,
            eos_token_id=ends or None,
            pad_token_id=pad,
        )


def generate(
    base: Writer,
    prompts: Sequence[Prompt],
    adapters: Sequence[str | None],
    *,
    batch_size: int = 8,
    **sampling: Any,
) -> list[str]:
    """Return the continuation of each prompt, without the prompt and without the stop.

    prompts: texts (used as they are, with the tokenizer's start token), message lists (chat template), or
    {"messages": ..., "tools": ...} where the chat template shows tools.
    adapters: one name or None per prompt.
    sampling: the fields of `Sampling`. Raises UsageError for bad settings, DataError for a prompt beyond the
    context.
    """
    for keyword in sampling:
        one_of("keyword of generate", keyword, Sampling.__dataclass_fields__)
    how = Sampling(**sampling)
    _check(base, prompts, batch_size)
    tokens = [_encode(base, prompt, row) for row, prompt in enumerate(prompts)]
    ends = end_tokens(base, how.stop, chat=any(not isinstance(prompt, str) for prompt in prompts))
    pad = base.tokenizer.pad_token_id if base.tokenizer.pad_token_id is not None else (ends or [0])[0]
    _known(base, tokens)
    context = _context(base, adapters)
    if context is not None:
        _fit(tokens, context, how.max_new_tokens)
    cache = base.cacheable(adapters)
    texts = [""] * len(prompts)
    with torch.no_grad(), evaluating(base), _seeded(how.seed):
        for rows, room in batches(base, adapters, tokens, how.max_new_tokens, context, batch_size):
            names, settings = [adapters[row] for row in rows], how.config(ends, pad, room, cache)
            part = _batch(base, [tokens[row] for row in rows], names, how, settings)
            for row, text in zip(rows, part, strict=True):
                texts[row] = text
    return texts


@contextmanager
def evaluating(base: Writer) -> Iterator[None]:
    """Put the model and all adapters into evaluation mode for the block, and every module back afterwards."""
    roots = [base.model, *(insert for adapter in base.adapters.values() for _, insert in adapter.inserts)]
    modes = [(module, module.training) for root in roots for module in root.modules()]
    for module, _ in modes:
        module.training = False
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _batch(
    base: Writer, tokens: list[list[int]], names: list[str | None], how: Sampling, config: GenerationConfig
) -> list[str]:
    """Call the model once. `base.routed` gives the order in which rows must stand, which is undone here."""
    tokenizer, seq2seq = base.tokenizer, base.family == "seq2seq"
    width = max(map(len, tokens))
    ids = torch.full((len(tokens), width), config.pad_token_id)
    live = torch.zeros_like(ids)
    for row, prompt in enumerate(tokens):
        place = slice(0, len(prompt)) if seq2seq else slice(width - len(prompt), width)
        ids[row, place] = torch.tensor(prompt)
        live[row, place] = 1
    start = 1 if seq2seq else width  # a decoder's first token is its start token
    criteria = StoppingCriteriaList([_StopWords(tokenizer, how.stop, start)] if how.stop else [])
    with base.routed(names) as order:
        out = base.model.generate(
            input_ids=ids[order].to(base.device),
            attention_mask=live[order].to(base.device),
            generation_config=config,
            stopping_criteria=criteria,
        )
    texts = [""] * len(tokens)
    for row, answer in zip(order, out[:, start:].tolist(), strict=True):
        end = next((i for i, token in enumerate(answer) if token in (config.eos_token_id or ())), len(answer))
        texts[row] = _cut(continuation(tokenizer, [] if seq2seq else tokens[row], answer[:end]), how.stop)
    return texts


def continuation(tokenizer: PreTrainedTokenizerBase, prompt: list[int], new: list[int]) -> str:
    """Return the text of `new` as it reads after `prompt`.

    Both are decoded together: tokenizers of Llama's kind drop the blank in front of whatever they decode
    first.
    """
    before = _text(tokenizer, prompt)
    whole = _text(tokenizer, prompt + new)
    return whole[len(before) :] if whole.startswith(before) else _text(tokenizer, new)


class _StopWords(StoppingCriteria):
    """Stops rows whose new text holds a stop word.

    Looks at the last tokens only: a word may be cut anywhere.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, words: Sequence[str], start: int) -> None:
        self.tokenizer = tokenizer
        self.words = words
        self.start = start
        self.reach = 4 + 4 * max(map(len, words))  # a character takes at most four tokens (bytes)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        tails = input_ids[:, max(self.start, input_ids.shape[1] - self.reach) :].tolist()
        stopped = [any(word in _text(self.tokenizer, tail) for word in self.words) for tail in tails]
        return torch.tensor(stopped, device=input_ids.device)


def end_tokens(base: Writer, stop: Sequence[str] = (), *, chat: bool) -> list[int]:
    """Return the tokens that end a text: the model's, the tokenizer's, the end of a turn, and some stops.

    Decoding hides special tokens, so a stop that is one could not be found in the text.
    """
    tokenizer = base.tokenizer
    eos = base.model.generation_config.eos_token_id
    ends = [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
    ends += [tokenizer.eos_token_id, _turn_end(tokenizer) if chat else None]
    ends += [tokenizer.get_added_vocab().get(text) for text in stop]
    return [token for token in dict.fromkeys(ends) if token is not None]


def _turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the token that the chat template writes after an answer, which training teaches."""
    end = Template(tokenizer, source(tokenizer)).end
    token: Any = None if end is None else tokenizer.convert_tokens_to_ids(end)
    return None if token is None else int(token)


def _cut(text: str, words: Sequence[str]) -> str:
    """Return the text in front of the first stop word."""
    return text[: min((text.find(word) for word in words if word in text), default=len(text))]


def _encode(base: Writer, prompt: Prompt, row: int) -> list[int]:
    """Return a prompt's ids, as training rows begin with them; one start token for an empty prompt."""
    tokenizer = base.tokenizer
    try:
        ids = prompt_ids(prompt, tokenizer, family=base.family)
    except BadRow as bad:
        reason, detail, remedy = bad.args
        raise DataError(
            f"prompt {row}: {reason}: {detail}", "messages that the chat template can write", remedy
        ) from None
    return (
        ids
        or [token for token in (tokenizer.bos_token_id, tokenizer.eos_token_id, 0) if token is not None][:1]
    )


def _text(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    text: Any = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return str(text)


def _context(base: Writer, adapters: Sequence[str | None]) -> int | None:
    """Return how many positions these adapters leave for tokens; None without a limit."""
    limit = None if base.family == "seq2seq" else context_length(base.model.config)
    return None if limit is None else limit - base.positions(adapters)


def _known(base: Writer, tokens: list[list[int]]) -> None:
    """Refuse prompts with tokens that the model has no embedding for."""
    rows = base.model.get_input_embeddings().weight.shape[0]
    beyond = [(row, token) for row, prompt in enumerate(tokens) for token in prompt if token >= rows]
    if beyond:
        words = [(row, base.tokenizer.convert_ids_to_tokens(token)) for row, token in beyond]
        raise DataError(
            listed(dict.fromkeys(f"prompt {row} has the token {word!r}" for row, word in words), 3),
            f"tokens of the model, which has {rows}",
            "take the model's own tokenizer, or another chat template",
        )


def _fit(tokens: list[list[int]], context: int, new: int) -> None:
    """Refuse prompts that leave no room for one token; say where answers may have to end early."""
    long = [(row, len(prompt)) for row, prompt in enumerate(tokens) if len(prompt) >= context]
    if long:
        given = listed([f"prompt {row} has {length} tokens" for row, length in long], 3)
        raise DataError(given, f"fewer than the {context} positions of the model", "shorten the prompt")
    if any(len(prompt) + new > context for prompt in tokens):
        notice(
            f"answers end at the model's {context} positions: not every prompt leaves room for {new} tokens"
        )


def _check(base: Writer, prompts: Sequence[Prompt], batch_size: int) -> None:
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
    _require("batch_size", batch_size, "a whole number above 0", _whole(batch_size, 1))


@contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    """Start torch's generators from `seed` for the block, and restore them afterwards.

    None leaves them alone.
    """
    if seed is None:
        yield
        return
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def _require(name: str, value: object, expected: str, holds: bool) -> None:
    if not holds:
        raise UsageError(f"{name}={value!r}", expected, f"correct {name}")


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _between(value: object, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low < value < high
