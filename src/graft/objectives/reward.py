"""Reward modelling: a number for an answer, so that of two answers the preferred one gets the larger.

    r(x, y) = w · h_last                                    h_last: the state of the answer's last token
    L = − log σ( r_w − r_l − m ) + λ ( r_w + r_l )²         over all pairs of answers to one prompt

m is the margin that graded preferences ask for; λ keeps rewards near 0, which the first term leaves free.
Bradley and Terry 1952; Ouyang et al. 2022, arXiv 2203.02155, §3.5, all pairs of one prompt together; margins:
Touvron et al. 2023, arXiv 2307.09288, §3.2.2; centring: Eisenstein et al. 2023, arXiv 2312.09244.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from graft.objectives.lm import forward_keywords

if TYPE_CHECKING:
    from graft.base.base import Base
    from graft.data.answer_batches import AnswerBatch

BINS = 10  # of the calibration, between probability 1/2 and 1


def answer_rewards(base: "Base", batch: "AnswerBatch") -> Tensor:
    """Return the reward of every answer, (A,) in fp32, by the head of the adapter in use.

    It is read at the answer's last token, whose place follows from lengths: a padding token may look like it.
    """
    states = base.hidden(**forward_keywords(batch)).flatten(0, 1)[batch.last]
    return base.head_logits(states)[:, 0]


def bradley_terry(chosen: Tensor, rejected: Tensor, margin: Tensor | float = 0.0) -> Tensor:
    """Return the losses −log σ(r_w − r_l − m) of pairs, (P,).

    >>> chosen, rejected = torch.tensor([1.2, 0.4], dtype=torch.float64)
    >>> round(float(bradley_terry(chosen, rejected)), 7)
    0.3711007
    """
    return -F.logsigmoid(chosen - rejected - margin)


def centring(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Return (r_w + r_l)² of pairs, (P,)."""
    return (chosen + rejected) ** 2


def reward_sums(rewards: Tensor, lengths: Tensor, better: Tensor, worse: Tensor) -> dict[str, Any]:
    """Return what a step reports, as sums over the pairs, which "tokens" counts.

    rewards, lengths: (A,); lengths in tokens.  better, worse: (P,) indices of each pair's two answers.
    "calibration" is a table (BINS, 3): for each bin of the probability σ(|Δ|) that the model gives to its own
    choice its pairs, the right ones and the summed probability. "length_..." are for `length_bias`.
    """
    rewards = rewards.detach()
    margin = rewards[better] - rewards[worse]
    longer = (lengths[better] - lengths[worse]).to(margin)
    right = margin > 0
    sure = torch.sigmoid(margin.abs())
    bins = ((sure - 0.5) * 2 * BINS).long().clamp(max=BINS - 1)
    rows = torch.stack([torch.ones_like(sure), right.to(sure), sure], dim=1)
    return {
        "tokens": float(len(better)),
        "correct": right.sum(),
        "margin": margin.sum(),
        "reward_chosen": rewards[better].sum(),
        "reward_rejected": rewards[worse].sum(),
        "calibration": sure.new_zeros(BINS, 3).index_add(0, bins, rows),
        "margin_squared": (margin**2).sum(),
        "length_squared": (longer**2).sum(),
        "length_margin": (longer * margin).sum(),
    }


def calibration(table: Sequence[Sequence[float]]) -> list[tuple[float, float, int]]:
    """Return (mean probability, share of right pairs, pairs) of every bin that has pairs.

    table: "calibration" of `reward_sums`, added up.
    """
    return [(sure / pairs, right / pairs, round(pairs)) for pairs, right, sure in table if pairs]


def calibration_error(table: Sequence[Sequence[float]]) -> float:
    """Return the expected calibration error Σ_b n_b/n |right − probability|; 0 is perfect.

    Naeini et al. 2015, "Obtaining well calibrated probabilities using Bayesian binning".
    """
    bins = calibration(table)
    return sum(count * abs(right - sure) for sure, right, count in bins) / sum(count for *_, count in bins)


def length_bias(sums: dict[str, Any]) -> float:
    """Return how rewards go with lengths: −1 … 1, 0 where one of the two is the same in all pairs.

    It is Pearson's correlation of the differences of the two answers of a pair, each pair taken both ways, so
    that it does not matter which answer is preferred.  sums: of `reward_sums`, added up.
    """
    size = math.sqrt(sums["length_squared"] * sums["margin_squared"])
    return float(sums["length_margin"] / size) if size else 0.0
