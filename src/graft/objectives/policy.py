"""What policies that learn from their own answers share: probability ratios and distances, token by token.

    ρ = π(y_t) / π_old(y_t)                                       π_old: the policy that wrote the answers
    L = max( −A ρ, −A clip(ρ, 1 − ε_low, 1 + ε_high) )            A: how much better than expected y_t was

Tokens lie flat, (N,): the answers of a batch one after the other, without prompts and without padding.
`padded` lays them out as (A, T), A answers by T tokens of the longest; `live` says where a token is.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from graft.errors import one_of

ESTIMATORS = ("k1", "k2", "k3")  # of the KL divergence, by samples


def live_tokens(lengths: Tensor) -> Tensor:
    """Return where answers of these lengths (A,) have tokens: (A, T) bool, T the longest.

    >>> live_tokens(torch.tensor([1, 2])).tolist()
    [[True, False], [True, True]]
    """
    places = torch.arange(int(lengths.max()), device=lengths.device)
    return places < lengths[:, None]


def padded(flat: Tensor, lengths: Tensor, fill: float = 0.0) -> Tensor:
    """Return (A, T) of answers that lie one after the other in flat (N,); `fill` stands behind their ends.

    >>> padded(torch.tensor([1, 2, 3]), torch.tensor([1, 2])).tolist()
    [[1, 0], [2, 3]]
    """
    live = live_tokens(lengths)
    return flat.new_full(live.shape, fill).masked_scatter(live, flat)


def flattened(padded: Tensor, lengths: Tensor) -> Tensor:
    """Return (N,) of (A, T), without what stands behind the ends of answers: the inverse of `padded`."""
    return padded[live_tokens(lengths)]


def answer_sums(flat: Tensor, lengths: Tensor) -> Tensor:
    """Return the sum (A,) over the tokens of each answer; the tokens of all lie in flat (N,)."""
    places = torch.arange(len(lengths), device=flat.device)
    # The size is known: without it the device would be waited for, and tensors without values have none.
    owner = places.repeat_interleave(lengths.to(flat.device), output_size=len(flat))
    return flat.new_zeros(len(lengths)).index_add(0, owner, flat)


def divergence(logprobs: Tensor, reference: Tensor, estimator: str) -> Tensor:
    """Return estimates of KL(π ‖ π_ref), one per token of an answer that π wrote.

    logprobs, reference: log π and log π_ref of the token, of one shape.  With δ = log π_ref − log π:

        k1 = −δ     k2 = δ²/2     k3 = e^δ − 1 − δ

    k1 has the right mean and may be negative; k2 varies less, and its mean is too large or too small; k3 has
    the right mean and is never negative.  Schulman 2020, "Approximating KL divergence".
    Raises UsageError for another estimator.
    """
    delta = reference - logprobs
    match one_of("estimator", estimator, ESTIMATORS):
        case "k1":
            return -delta
        case "k2":
            return delta**2 / 2
        case _:
            return torch.expm1(delta) - delta


def clipped_policy(
    new: Tensor, old: Tensor, advantages: Tensor, low: float, high: float | None = None
) -> tuple[Tensor, Tensor]:
    """Return the loss max(−A ρ, −A clip(ρ, 1 − low, 1 + high)) of every action, and where it is clipped.

    new, old: log π and log π_old of the action: a token, or a whole answer.  advantages: A; all of one shape.
    high: the same as low where it is not given.  An action is clipped where the second term is the larger
    one: then it has no gradient.  Schulman et al. 2017, arXiv 1707.06347, eq. 7; two bounds: Yu et al. 2025,
    arXiv 2503.14476, §3.1.
    """
    ratio = torch.exp(new - old)
    free = -advantages * ratio
    bounded = -advantages * ratio.clamp(1 - low, 1 + (low if high is None else high))
    return torch.maximum(free, bounded), (bounded > free).detach()


def approximate_kl(new: Tensor, old: Tensor) -> Tensor:
    """Return ½ (log ρ)² per action: how far the policy has moved from the one that wrote the answers."""
    return (new - old) ** 2 / 2


def policy_sums(new: Tensor, old: Tensor, clipped: Tensor) -> dict[str, Any]:
    """Return what an update reports, as sums over the actions, which "actions" counts.

    new, old: log π and log π_old of actions that exist, not of padding.  clipped: of `clipped_policy`.
    "tokens" is left to the caller: it counts what divides the loss, which may be answers.
    """
    new = new.detach()
    return {
        "actions": float(new.numel()),
        "ratio": torch.exp(new - old).sum(),
        "clipped": clipped.sum(),
        "approximate_kl": approximate_kl(new, old).sum(),
    }


def policy_means(sums: Mapping[str, Any]) -> dict[str, float]:
    """Return the mean ratio, the share of clipped actions and the approximate KL.  sums: of `policy_sums`."""
    count = sums["actions"]
    return {
        "ratio": sums["ratio"] / count,
        "clip_fraction": sums["clipped"] / count,
        "approximate_kl": sums["approximate_kl"] / count,
    }
