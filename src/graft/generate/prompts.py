"""Prompts: texts and conversations as ids, checked against the model that is to continue them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeGuard

from transformers import PreTrainedTokenizerBase

from graft.core.positions import context_length
from graft.data.rows import BadRow
from graft.data.templates import Prompt, Template, prompt_ids, source
from graft.errors import DataError, listed, notice


def several(prompts: Any) -> list[Any]:
    """Return prompts as a list. One text, one conversation or the ids of one text are one prompt.

    >>> several("Hello"), several([{"role": "user", "content": "Hello"}]), several(["Hello", "Bye"])
    (['Hello'], [[{'role': 'user', 'content': 'Hello'}]], ['Hello', 'Bye'])
    """
    if isinstance(prompts, str | Mapping):
        return [prompts]
    given = list(prompts)
    turns = bool(given) and all(isinstance(turn, Mapping) and "role" in turn for turn in given)
    return [given] if turns or is_ids(given) else given


def encoded(base: Any, prompts: Sequence[Prompt]) -> list[list[int]]:
    """Return the ids of each prompt. Raises DataError for one that has no ids that the model knows."""
    tokens = [_encode(base, prompt, row) for row, prompt in enumerate(prompts)]
    _known(base, tokens)
    return tokens


def _encode(base: Any, prompt: Prompt, row: int) -> list[int]:
    """Return a prompt's ids, as training rows begin with them; one start token for an empty prompt."""
    tokenizer = base.tokenizer
    if is_ids(prompt):
        return list(prompt)
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


def is_ids(prompt: Any) -> TypeGuard[list[int]]:
    """Return whether a prompt is given as its ids."""
    return isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], int)


def _known(base: Any, tokens: list[list[int]]) -> None:
    """Refuse prompts with tokens that the model has no embedding for."""
    rows = base.model.get_input_embeddings().weight.shape[0]
    beyond = [(row, token) for row, prompt in enumerate(tokens) for token in prompt if not 0 <= token < rows]
    if beyond:
        told = {  # by its text, if it has one
            token: base.tokenizer.convert_ids_to_tokens(token) if 0 <= token < len(base.tokenizer) else token
            for _, token in beyond
        }
        raise DataError(
            listed(dict.fromkeys(f"prompt {row} has the token {told[token]!r}" for row, token in beyond), 3),
            f"tokens of the model, which has {rows}",
            "take the model's own tokenizer, or another chat template",
        )


def rooms(base: Any, tokens: list[list[int]], adapters: Sequence[str | None], new: int) -> list[int | None]:
    """Return how many tokens the context leaves for each answer; None without a limit.

    Raises DataError for prompts that leave no room for one token; says where answers may have to end early.
    """
    limit = None if base.family == "seq2seq" else context_length(base.model.config)
    if limit is None:
        return [None] * len(tokens)
    taken = {name: base.positions([name]) for name in set(adapters)}
    left = [limit - taken[name] - len(prompt) for prompt, name in zip(tokens, adapters, strict=True)]
    long = [row for row, room in enumerate(left) if room <= 0]
    if long:
        given = listed([f"prompt {row} has {len(tokens[row])} tokens" for row in long], 3)
        context = limit - max(taken[adapters[row]] for row in long)
        raise DataError(given, f"fewer than the {context} positions of the model", "shorten the prompt")
    if any(room < new for room in left):
        notice(f"answers end at the model's {limit} positions: not every prompt leaves room for {new} tokens")
    return list(left)


def end_tokens(base: Any, stop: Sequence[str] = (), *, chat: bool) -> list[int]:
    """Return the tokens that end a text: the model's, the tokenizer's, the end of a turn, and some stops.

    Decoding hides special tokens, so a stop that is one could not be found in the text.
    """
    tokenizer = base.tokenizer
    eos = base.model.generation_config.eos_token_id
    ends: Iterable[Any] = [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
    ends = [*ends, tokenizer.eos_token_id, _turn_end(tokenizer) if chat else None]
    ends += [tokenizer.get_added_vocab().get(text) for text in stop]
    return [token for token in dict.fromkeys(ends) if token is not None]


def _turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the token that the chat template writes after an answer, which training teaches."""
    end = Template(tokenizer, source(tokenizer)).end
    token: Any = None if end is None else tokenizer.convert_tokens_to_ids(end)
    return None if token is None else int(token)
