"""Choosing tokens: the next token of every row of a batch, in tensor operations over all rows at once.

    p = softmax(filtered(penalised(logits)) / temperature)        token = the first i with Σ_{j ≤ i} p_j > u

u is drawn from each request's own generator, so a row's token depends on its logits alone. Rows that do not
sample take the largest logit. What no row asks for costs nothing.
"""

from collections.abc import Sequence

import torch

from graft.generate.request import Request

MINUS = -float("inf")
HEAD = 1024  # tokens that are sorted first in search of top_p; all are sorted where that is not enough


class Chooser:
    """The settings of the requests in a batch, as tensors. It is made anew when a row comes or goes.

    size: V, the number of logits of a row.
    """

    def __init__(self, requests: Sequence[Request], size: int, device: torch.device | str = "cpu") -> None:
        self._requests, self._size, self._device = list(requests), size, device
        hows = [request.how for request in requests]
        self._sampled = [row for row, how in enumerate(hows) if how.do_sample]
        self._all_sampled = len(self._sampled) == len(hows)
        self._index = self._tensor(self._sampled, torch.long)
        chosen = [hows[row] for row in self._sampled]
        self._warm = self._column([how.temperature for how in chosen], 1.0)
        self._top_k = [how.top_k for how in chosen] if any(how.top_k for how in chosen) else None
        self._top_p = self._column([how.top_p for how in chosen], 1.0)
        self._min_p = self._column([how.min_p for how in chosen], 0.0)
        self._logged = [row for row, how in enumerate(hows) if how.logprobs is not None]
        self._likeliest = min(size, max([hows[row].logprobs or 0 for row in self._logged], default=0))
        self._least = max(how.min_new_tokens for how in hows) if hows else 0
        self._bias = self._biases()
        self._repetition = self._column([how.repetition_penalty for how in hows], 1.0)
        self._presence = self._column([how.presence_penalty for how in hows], 0.0)
        self._frequency = self._column([how.frequency_penalty for how in hows], 0.0)
        self._written, self._read = self._counts()
        self._constrained = [row for row, request in enumerate(self._requests) if request.constraint]

    def _tensor(self, values: Sequence[float], dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype, device=self._device)

    def _column(self, values: list[float], neutral: float) -> torch.Tensor | None:
        """Return a setting of all rows (n, 1), or None where it is neutral in all."""
        if all(value == neutral for value in values):
            return None
        return self._tensor(values)[:, None]

    def _biases(self) -> torch.Tensor | None:
        if not any(request.how.logit_bias for request in self._requests):
            return None
        bias = torch.zeros(len(self._requests), self._size)
        for row, request in enumerate(self._requests):
            for token, value in request.how.logit_bias.items():
                if token < self._size:
                    bias[row, token] = value
        return bias.to(self._device)

    def _counts(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Return how often each token is in each row's text (n, V), and whether it is in its prompt."""
        if self._repetition is self._presence is self._frequency is None:
            return None, None
        written = torch.zeros(len(self._requests), self._size)
        read = torch.zeros(len(self._requests), self._size, dtype=torch.bool)
        for row, request in enumerate(self._requests):
            if request.how.penalised:
                written[row] = torch.bincount(
                    torch.tensor(request.tokens, dtype=torch.long), minlength=self._size
                )[: self._size]
                ids = torch.tensor(list(request.prompt), dtype=torch.long)
                read[row, ids[ids < self._size]] = True
        return written.to(self._device), read.to(self._device)

    def choose(self, logits: torch.Tensor) -> tuple[list[int], torch.Tensor]:
        """Choose the next token of every row, and hand requests that ask for it its log-probability.

        logits: (n, V) in fp32, which stay as they are. Returns the tokens, as numbers and as a tensor (n,).
        """
        biased = self._penalised(logits)
        if self._bias is not None:
            biased = biased + self._bias
        if self._least:
            biased = self._without_ends(biased)
        if self._constrained:
            biased = self._let_through(biased)
        if not self._sampled:
            tokens = _largest(biased)
        elif self._all_sampled:
            tokens = self._draw(biased)
        else:
            tokens = _largest(biased)
            tokens[self._index] = self._draw(biased[self._index])
        if self._written is not None:
            column = tokens[:, None]
            self._written.scatter_add_(1, column, torch.ones_like(column, dtype=torch.float32))
        if self._logged:
            self._log(logits, tokens)
        return tokens.tolist(), tokens

    def _penalised(self, logits: torch.Tensor) -> torch.Tensor:
        if self._written is None or self._read is None:
            return logits
        used = self._written > 0
        if self._repetition is not None:
            scaled = torch.where(logits < 0, logits * self._repetition, logits / self._repetition)
            logits = torch.where(used | self._read, scaled, logits)
        if self._presence is not None:
            logits = logits - self._presence * used
        if self._frequency is not None:
            logits = logits - self._frequency * self._written
        return logits

    def _without_ends(self, logits: torch.Tensor) -> torch.Tensor:
        rows = [(row, request) for row, request in enumerate(self._requests) if request.holds_ends_back]
        pairs = [(row, end) for row, request in rows for end in request.ends if end < self._size]
        if not pairs:
            return logits
        banned = logits.clone()
        banned[tuple(torch.tensor(pairs, device=logits.device).T)] = MINUS
        return banned

    def _let_through(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the logits without those of tokens that the constraints of their rows forbid."""
        kept = logits.clone()
        for row in self._constrained:
            constraint = self._requests[row].constraint
            assert constraint is not None
            mask = constraint.mask().to(kept.device)
            kept[row, : len(mask)].masked_fill_(~mask[: self._size], MINUS)
            kept[row, len(mask) :] = MINUS
        return kept

    def _draw(self, logits: torch.Tensor) -> torch.Tensor:
        """Return one token (n,) for each row of those that sample."""
        chances = [self._requests[row].draw() for row in self._sampled]
        probabilities = self._filtered(logits)
        sums = probabilities.double().cumsum(1)  # in fp32 the sum of many small numbers would lose some
        goal = torch.tensor(chances, dtype=torch.float64, device=logits.device)[:, None] * sums[:, -1:]
        return torch.searchsorted(sums, goal, right=True)[:, 0].clamp(max=logits.shape[1] - 1)

    def _filtered(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the probabilities (n, V), not normalised, of what may be drawn; 0 of the other tokens."""
        if self._warm is not None:
            logits = logits / self._warm
        if self._top_k is not None:
            counts = [k if 0 < k < logits.shape[1] else logits.shape[1] for k in self._top_k]
            logits = logits.masked_fill(logits < _nth(logits, counts), MINUS)
        probabilities = logits.softmax(1)
        if self._top_p is not None:
            probabilities = probabilities * (probabilities >= _nucleus(probabilities, self._top_p))
        if self._min_p is not None:
            least = self._min_p * probabilities.amax(1, keepdim=True)
            probabilities = probabilities * (probabilities >= least)
        return probabilities

    def _log(self, logits: torch.Tensor, tokens: torch.Tensor) -> None:
        """Hand each request that asks for it the log-probability of its token, and the likeliest tokens."""
        if len(self._logged) < len(self._requests):
            logits, tokens = logits[self._logged], tokens[self._logged]
        logged = logits.log_softmax(1)
        values = logged.gather(1, tokens[:, None])[:, 0].tolist()
        best = logged.topk(self._likeliest, 1) if self._likeliest else None
        top = [] if best is None else best.values.tolist()
        ids = [] if best is None else best.indices.tolist()
        for place, row in enumerate(self._logged):
            request = self._requests[row]
            request.logprobs.append(values[place])
            if count := request.how.logprobs:
                pairs = zip(ids[place][:count], top[place][:count], strict=True)
                request.top_logprobs.append(dict(pairs))


def _nth(logits: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """Return the nth largest logit (rows, 1) of each row; its equals are among the n largest too."""
    whole = [count == logits.shape[1] for count in counts]
    most = max((count for count, all_ in zip(counts, whole, strict=True) if not all_), default=1)
    largest = logits.topk(most, 1).values
    index = torch.tensor([[min(count, most) - 1] for count in counts], device=logits.device)
    nth = largest.gather(1, index)
    return nth.masked_fill(torch.tensor(whole, device=logits.device)[:, None], MINUS)


def _nucleus(probabilities: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Return the probability (rows, 1) of the last token that top_p (rows, 1) keeps.

    A token is kept if those before it, likeliest first, have less than top_p together.
    """
    count = probabilities.shape[1]
    for width in (min(HEAD, count), count):
        ordered = probabilities.topk(width, 1).values
        before = ordered.cumsum(1) - ordered
        kept = (before < top_p).sum(1, keepdim=True)
        if width == count or bool((kept < width).all()):
            break
    return ordered.gather(1, (kept - 1).clamp(min=0))


def _largest(logits: torch.Tensor) -> torch.Tensor:
    """Return the place of the first largest logit of every row (n,)."""
    if logits.device.type != "cpu":
        return logits.argmax(1)
    return torch.from_numpy(logits.numpy().argmax(1))  # eight times as fast as torch's
