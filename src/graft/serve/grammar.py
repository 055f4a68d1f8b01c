"""Answers of a given form: JSON, or JSON of a schema, held token by token by llguidance."""

import json
from typing import Any

import numpy
import torch

from graft.errors import UsageError
from graft.serve.failures import ApiError

# Blanks between two parts are fixed: a model that likes line breaks could write them for ever.
COMPACT: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class Grammars:
    """The grammars of one tokenizer.  size: V, the logits of a row."""

    def __init__(self, tokenizer: Any, size: int) -> None:
        self._tokenizer, self._size = tokenizer, size
        self._known: Any = None

    def json(self, schema: dict[str, Any] | None) -> "Held":
        """Return a constraint to JSON of this schema; None: to any object.

        Raises ApiError for a schema that is none, UsageError where llguidance is not installed.
        """
        try:
            import llguidance  # an extra; only those who ask for a form need it
            from llguidance.hf import from_tokenizer
        except ImportError:
            raise UsageError(
                "response_format on a server without llguidance",
                "the extra of the server",
                "pip install 'graftlm[serve]'",
            ) from None
        if self._known is None:
            self._known = from_tokenizer(self._tokenizer, n_vocab=self._size)
        text = json.dumps(schema if schema is not None else {"type": "object"})
        try:
            grammar = llguidance.LLMatcher.grammar_from_json_schema(text, defaults=COMPACT)
            matcher = llguidance.LLMatcher(self._known, grammar, log_level=0)  # it would print parts of texts
        except Exception as error:  # the library raises ValueError and its own
            raise ApiError(400, f"response_format: {str(error)[:200]}", param="response_format") from None
        if matcher.is_error():
            raise ApiError(400, f"response_format: {matcher.get_error()[:200]}", param="response_format")
        return Held(matcher, self._size)


class Held:
    """One text under a grammar (a `graft.generate.request.Constraint`).

    trouble: why the grammar could not be held to the end; "" if it could. The text ends where that happens.
    """

    def __init__(self, matcher: Any, size: int) -> None:
        self._matcher, self._size, self.trouble = matcher, size, ""

    def mask(self) -> torch.Tensor:
        bits = numpy.frombuffer(self._matcher.compute_logit_bias(), dtype=numpy.uint8)
        return torch.from_numpy(bits != 0)[: self._size]

    def accept(self, token: int) -> None:
        self._matcher.consume_token(token)
        if self._matcher.is_error() and not self.trouble:
            self.trouble = self._matcher.get_error().partition("\n")[0][:200]
