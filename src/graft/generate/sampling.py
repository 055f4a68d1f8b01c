"""Sampling: how the tokens of one text are chosen, and when the text ends.

The settings act on fp32 logits in this order, which is transformers' (and vLLM's):

    repetition penalty, presence and frequency penalty, logit bias, end tokens held back by min_new_tokens,
    temperature, top_k, top_p, min_p

Log-probabilities are those of the model: the log-softmax of its logits before any of this.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from graft.errors import UsageError

BIAS_LIMIT = 100.0  # OpenAI's: as good as a ban, or as force


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen and when a text ends. Raises UsageError for values that mean nothing.

    max_new_tokens, min_new_tokens: of the text; before the least, no end token is chosen and no stop counts.
    temperature: logits are divided by it.  top_k: only the k likeliest, 0 for all.
    top_p: smallest set of tokens with that much probability.
    min_p: only tokens at least that likely, as a share of the likeliest one.
    repetition_penalty: the positive logits of tokens of prompt and text are divided by it, the negative ones
    multiplied; 1 is none (Keskar et al. 2019, as in transformers).
    presence_penalty, frequency_penalty: taken off the logits of tokens of the text, once, and once for each
    time; 0 is none (OpenAI's definitions).
    logit_bias: {token: what is added to its logit}, from -100 to 100.
    stop: texts that end the answer, and are cut off.  stop_token_ids: tokens that end it, as the model's own.
    seed: same seed, prompts and settings give the same texts.
    logprobs: None for none; 0 for the log-probability of each chosen token; k for the k likeliest tokens of
    each place as well.
    """

    max_new_tokens: int = 128
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    min_new_tokens: int = 0
    stop: tuple[str, ...] = field(default=())
    stop_token_ids: tuple[int, ...] = field(default=())
    seed: int | None = None
    logprobs: int | None = None

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        object.__setattr__(self, "stop", stop)
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        whole = "0 (off) or a whole number above it"
        most = self.max_new_tokens
        require("max_new_tokens", most, "a whole number above 0", is_whole(most, 1))
        require("min_new_tokens", self.min_new_tokens, whole, is_whole(self.min_new_tokens, 0))
        positive = "a finite number above 0"
        require("temperature", self.temperature, positive, _between(self.temperature, 0, math.inf))
        require("top_p", self.top_p, "above 0 and at most 1", _between(self.top_p, 0, 1) or self.top_p == 1)
        require("top_k", self.top_k, whole, is_whole(self.top_k, 0))
        require("min_p", self.min_p, "from 0 to 1", _within(self.min_p, 0, 1))
        penalty = self.repetition_penalty
        require("repetition_penalty", penalty, positive, _between(penalty, 0, math.inf))
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            require(name, value, "from -2 to 2", _within(value, -2, 2))
        require("stop", stop, "texts that are not empty", all(isinstance(t, str) and t for t in stop))
        tokens = all(is_whole(token, 0) for token in self.stop_token_ids)
        require("stop_token_ids", self.stop_token_ids, "tokens", tokens)
        require("logit_bias", self.logit_bias, "{token: -100 to 100}", _is_bias(self.logit_bias))
        require("seed", self.seed, "a whole number of at most 64 bits", _is_seed(self.seed))
        counted = self.logprobs is None or is_whole(self.logprobs, 0)
        require("logprobs", self.logprobs, "None, or a whole number", counted)

    @property
    def penalised(self) -> bool:
        """Whether a token's logit depends on the tokens before it, besides the model."""
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1.0, 0.0, 0.0)


def require(name: str, value: object, expected: str, holds: bool) -> None:
    """Raise UsageError for a setting unless `holds`."""
    if not holds:
        raise UsageError(f"{name}={value!r}", expected, f"correct {name}")


def is_whole(value: object, least: int) -> bool:
    """Return whether a value is a whole number of at least `least`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _between(value: object, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low < value < high


def _within(value: object, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def _is_seed(value: object) -> bool:
    return value is None or (isinstance(value, int) and -(2**63) <= value < 2**64)


def _is_bias(bias: object) -> bool:
    return isinstance(bias, Mapping) and all(
        is_whole(token, 0) and _within(value, -BIAS_LIMIT, BIAS_LIMIT) for token, value in bias.items()
    )
