"""A request: one prompt, how it is continued, and what has been written so far.

A text ends at a token (the end tokens of model and template), at a stop text, which is cut off, or at its
length. What is streamed never has to be taken back: text that may be the start of a stop text is held until
it is known not to be, as are the first bytes of a character.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy
import torch
from transformers import PreTrainedTokenizerBase

from graft.errors import UsageError
from graft.generate.sampling import Sampling
from graft.storage.signals import check

CONTEXT = 6  # tokens of the prompt that are decoded with the first ones of the text: blanks depend on them
UNFINISHED = "\ufffd"  # what tokenizers write for bytes that are no whole character


class Constraint(Protocol):
    """What a text may look like, token by token: a grammar, a schema."""

    def mask(self) -> torch.Tensor:
        """Return which tokens may come next (V,), as booleans; end tokens too, where the text may end."""

    def accept(self, token: int) -> None:
        """Go on after a token that was chosen."""


@dataclass
class Completion:
    """What was written to one prompt.

    text: without the stop.  tokens: the tokens, with the one that ended the text, if one did.
    finish_reason: "stop" (an end token or stop text) or "length", in OpenAI's words.
    logprobs: of each token, under the model's logits as they are; None if they were not asked for.
    top_logprobs: {token: log-probability} of the likeliest tokens at each place, best first.
    """

    text: str
    tokens: list[int]
    finish_reason: Literal["stop", "length"]
    logprobs: list[float] | None = None
    top_logprobs: list[dict[int, float]] | None = None


@dataclass(eq=False)
class Request:
    """One prompt that is continued.

    prompt: its ids, at least one.  adapter: by name, None for the bare base.
    ends: tokens that end the text.  room: the most tokens that the context leaves for the text.
    seed, index: of the request's own generator; `index` tells the rows of one call apart.
    tokenizer: needed for texts; without one only tokens are written.  alone: the text is decoded without its
    prompt, which another part of the model has read.  on_text: is called with each new piece of the text.
    on_end: is called when the text has ended, before the others go on.
    constraint: only tokens that it lets through are chosen.
    """

    prompt: list[int]
    adapter: str | None = None
    how: Sampling = field(default_factory=Sampling)
    ends: frozenset[int] = frozenset()
    room: int | None = None
    index: int = 0
    seed: int = 0
    tokenizer: PreTrainedTokenizerBase | None = None
    alone: bool = False
    on_text: Callable[[str], None] | None = None
    on_end: Callable[[Completion], None] | None = None
    constraint: Constraint | None = None

    def __post_init__(self) -> None:
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.top_logprobs: list[dict[int, float]] = []
        self.completion: Completion | None = None
        self.limit = min(self.how.max_new_tokens, self.room or self.how.max_new_tokens)
        key = [(self.how.seed if self.how.seed is not None else self.seed) % 2**64, self.index]
        self._chance = numpy.random.Generator(numpy.random.Philox(key=numpy.array(key, numpy.uint64)))
        self._pieces = None
        if self.tokenizer is not None and (self.how.stop or self.on_text):
            self._pieces = Pieces(self.tokenizer, [] if self.alone else self.prompt, self.how.stop)

    def draw(self) -> float:
        """Return the next number of this request's generator, uniform in [0, 1)."""
        return float(self._chance.random())

    @property
    def finished(self) -> bool:
        """Whether the text has ended."""
        return self.completion is not None

    @property
    def holds_ends_back(self) -> bool:
        """Whether the next token may not end the text."""
        return len(self.tokens) < self.how.min_new_tokens

    def take(self, token: int) -> bool:
        """Add a token to the text. Returns whether that ends it. Raises Stop after a signal."""
        check()
        self.tokens.append(token)
        if self.constraint is not None:
            self.constraint.accept(token)
        if token in self.ends:
            return self._finish("stop", self.tokens[:-1])
        if self._pieces is not None:
            piece, stopped = self._pieces.add(token, heed=len(self.tokens) >= self.how.min_new_tokens)
            if stopped:
                return self._finish("stop", self.tokens)
            if piece and self.on_text is not None:
                self.on_text(piece)
        return len(self.tokens) >= self.limit and self._finish("length", self.tokens)

    def _finish(self, reason: Literal["stop", "length"], tokens: list[int]) -> bool:
        text = ""
        if self.tokenizer is not None:
            text = continuation(self.tokenizer, [] if self.alone else self.prompt, tokens)
            if self._pieces is not None:
                text = self._pieces.cut(text)
        if self.on_text is not None and self._pieces is not None:
            rest = text[self._pieces.given :]
            if rest:
                self.on_text(rest)
        wanted = self.how.logprobs
        self.completion = Completion(
            text,
            self.tokens,
            reason,
            None if wanted is None else self.logprobs,
            self.top_logprobs if wanted else None,
        )
        if self.on_end is not None:
            self.on_end(self.completion)
        return True


def too_long(request: Request, limit: int) -> UsageError:
    """Return the error of a request that a cache of `limit` positions can never hold."""
    return UsageError(
        f"a prompt of {len(request.prompt)} tokens and an answer of {request.limit}",
        f"at most {limit} positions together: max_cache_tokens",
        "shorten the prompt, lower max_new_tokens, or raise max_cache_tokens",
    )


class Pieces:
    """The text of a request as it grows: what may be given out, and whether a stop is in it."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], stops: Sequence[str]
    ) -> None:
        self._tokenizer, self._stops = tokenizer, stops
        self._ids = list(prompt[-CONTEXT:])
        self._start, self._read = 0, len(self._ids)  # decoded together with what comes, and decoded already
        self._before = decoded(tokenizer, self._ids)
        self._text, self.given = "", 0  # all of the text, and how many of its characters were given out
        self._longest = max(map(len, stops), default=0)
        self._least = 0  # where the search for stops begins

    def add(self, token: int, *, heed: bool = True) -> tuple[str, bool]:
        """Return the piece that may be given out after one more token, and whether a stop text is complete.

        heed: whether stops count at this token.
        """
        self._ids.append(token)
        whole = decoded(self._tokenizer, self._ids[self._start :])
        self._before = begun(self._before, whole)
        if len(whole) <= len(self._before) or whole.endswith(UNFINISHED):
            return "", False
        known = len(self._text)
        self._text += whole[len(self._before) :]
        self._start, self._read = self._read, len(self._ids)
        self._before = decoded(self._tokenizer, self._ids[self._start :])
        if not heed:
            self._least = len(self._text)
        elif self._stops and self._found(max(self._least, known - self._longest + 1)):
            return "", True
        held = held_back(self._text[self._least :], self._stops) if self._stops else 0
        piece = self._text[self.given : len(self._text) - held]
        self.given += len(piece)
        return piece, False

    def _found(self, start: int) -> bool:
        return any(stop in self._text[start:] for stop in self._stops)

    def cut(self, text: str) -> str:
        """Return the text in front of the first stop that counts."""
        found = [place for stop in self._stops if (place := text.find(stop, self._least)) >= 0]
        return text[: min(found, default=len(text))]


def held_back(text: str, stops: Sequence[str]) -> int:
    """Return how many characters at the end of a text may be the start of a stop.

    >>> held_back("a cat</", ["</s>", "dog"])
    2
    """
    longest = min(max(map(len, stops), default=1) - 1, len(text))
    for count in range(longest, 0, -1):
        if any(stop.startswith(text[-count:]) for stop in stops if len(stop) > count):
            return count
    return 0


def continuation(tokenizer: PreTrainedTokenizerBase, prompt: list[int], new: list[int]) -> str:
    """Return the text of `new` as it reads after `prompt`.

    Both are decoded together: tokenizers of Llama's kind drop the blank in front of whatever they decode
    first.
    """
    whole = decoded(tokenizer, prompt + new)
    before = begun(decoded(tokenizer, prompt), whole)
    return whole[len(before) :] if whole.startswith(before) else decoded(tokenizer, new)


def begun(before: str, whole: str) -> str:
    """Return the text in front without the parts of a character that more tokens have completed.

    >>> begun("a \ufffd\ufffd", "a \N{GRINNING FACE} b"), begun("a \ufffd", "a \ufffd b")
    ('a ', 'a �')
    """
    while before.endswith(UNFINISHED) and not whole.startswith(before):
        before = before[: -len(UNFINISHED)]
    return before


def decoded(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """Return the text of tokens, without special ones."""
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
