"""Preference objectives: a preferred answer becomes likelier than the other, without a reward model.

    h = [log π(y_w) − log π_ref(y_w)] − [log π(y_l) − log π_ref(y_l)]

y_w and y_l are two answers to one prompt x; y_w is preferred. log π(y) is the sum over the tokens of the
answer, with the one that ends it and without the prompt's; an average divides it by their number. π_ref is
the model that training started from. r = β (log π − log π_ref) is the answer's implicit reward.

Every loss is a pure function of tensors: one number for each pair (P,), or for each answer (A,) of KTO.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from graft.objectives.lm import forward_keywords, token_logprobs

if TYPE_CHECKING:
    from graft.base.base import Base
    from graft.data.answer_batches import AnswerBatch


def answer_logprobs(base: "Base", batch: "AnswerBatch") -> tuple[Tensor, Tensor]:
    """Return log π(y) of every answer, summed over its tokens, and the number of its tokens: (A,) each."""
    states = base.hidden(**forward_keywords(batch)).flatten(0, 1)[batch.states]
    logprobs, _ = token_logprobs(base, states, batch.labels)
    sums = logprobs.new_zeros(len(batch.last)).index_add(0, batch.owner, logprobs)
    return sums, batch.lengths()


def dpo(h: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """Return the losses (P,) of direct preference optimisation.  label_smoothing: ε, 0 is DPO itself.

        L = −(1 − ε) log σ(β h) − ε log σ(−β h)

    Rafailov et al. 2023, arXiv 2305.18290, eq. 7; with ε, the share of labels that are wrong, cDPO (Mitchell
    2023).
    """
    return -(1 - label_smoothing) * F.logsigmoid(beta * h) - label_smoothing * F.logsigmoid(-beta * h)


def robust(h: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """Return the losses (P,) whose mean over wrong labels, a share ε of all, is DPO's on the right ones.

        L = ( −(1 − ε) log σ(β h) + ε log σ(−β h) ) / (1 − 2ε)

    label_smoothing: ε < 1/2.  Chowdhury et al. 2024, arXiv 2403.00409, eq. 9.
    """
    right, wrong = F.logsigmoid(beta * h), F.logsigmoid(-beta * h)
    return (label_smoothing * wrong - (1 - label_smoothing) * right) / (1 - 2 * label_smoothing)


def hinge(h: Tensor, beta: float) -> Tensor:
    """Return the losses (P,) of SLiC with the reference's margin: L = max(0, 1 − β h).

    Zhao et al. 2023, arXiv 2305.10425; in this form Liu et al. 2023, arXiv 2309.06657.
    """
    return torch.relu(1 - beta * h)


def ipo(mean_h: Tensor, beta: float) -> Tensor:
    """Return the losses (P,) of identity preference optimisation: L = (h − 1/(2β))².

    mean_h: h of averages over tokens, as in TRL: with sums the goal 1/(2β) would depend on the length.
    Azar et al. 2023, arXiv 2310.12036, eq. 17, with β for τ.
    """
    return (mean_h - 1 / (2 * beta)) ** 2


def orpo(chosen_mean: Tensor, rejected_mean: Tensor, beta: float) -> Tensor:
    """Return the losses (P,) of odds-ratio preference optimisation, which needs no reference.

        L = −log P_w − β log σ( log odds_w − log odds_l )      P = exp(mean log π),  odds = P / (1 − P)

    chosen_mean, rejected_mean: log π averaged over the answer's tokens.  beta: the paper's λ.
    Hong et al. 2024, arXiv 2403.07691, eq. 6.  Differs from TRL: the first term counts the answer alone, and
    every pair equally; there it counts the prompt's tokens too.
    """
    log_odds = _log_odds(chosen_mean) - _log_odds(rejected_mean)
    return -chosen_mean - beta * F.logsigmoid(log_odds)


def _log_odds(mean: Tensor) -> Tensor:
    # log(1 − exp m) for m < 0; expm1 keeps its digits for an answer that is nearly certain.
    tiny = torch.finfo(mean.dtype).tiny
    return mean - torch.log((-torch.expm1(mean)).clamp(min=tiny))


def simpo(chosen_mean: Tensor, rejected_mean: Tensor, beta: float, gamma: float) -> Tensor:
    """Return the losses (P,) of simple preference optimisation, which needs no reference.

        L = −log σ( β (mean log π(y_w) − mean log π(y_l)) − γ )

    Meng et al. 2024, arXiv 2405.14734, eq. 6.
    """
    return -F.logsigmoid(beta * (chosen_mean - rejected_mean) - gamma)


def kto(
    ratio: Tensor, good: Tensor, z0: Tensor, beta: float, *, desirable: float = 1.0, undesirable: float = 1.0
) -> Tensor:
    """Return the losses (A,) of Kahneman-Tversky optimisation, on answers that are good or bad by themselves.

        L = λ_D (1 − σ(β (r − z₀)))     of a good answer,      r = log π − log π_ref
        L = λ_U (1 − σ(β (z₀ − r)))     of a bad one

    ratio: r.  good: (A,) bool.  z0: see `reference_point`.  desirable, undesirable: λ_D and λ_U.
    Ethayarajh et al. 2024, arXiv 2402.01306, eq. 8.
    """
    gain = torch.sigmoid(beta * torch.where(good, ratio - z0, z0 - ratio))
    return torch.where(good, desirable * (1 - gain), undesirable * (1 - gain))


def reference_point(mismatched: Tensor) -> Tensor:
    """Return KTO's z₀ = max(0, mean r), an estimate of KL(π ‖ π_ref) that gets no gradient.

    mismatched: (A,) log π − log π_ref of answers to prompts that are not theirs.
    """
    return mismatched.detach().mean().clamp(min=0)


def chosen_nll(chosen_mean: Tensor) -> Tensor:
    """Return the supervised term (P,) that is added to a preference loss: −mean log π(y_w) over its tokens.

    Pang et al. 2024, arXiv 2404.19733, eq. 2.
    """
    return -chosen_mean


def pair_sums(rewards: Tensor, logprobs: Tensor, better: Tensor, worse: Tensor) -> dict[str, Any]:
    """Return what a step on pairs reports, as sums over the pairs, which "tokens" counts.

    rewards, logprobs: (A,) of all answers.  better, worse: (P,) indices of each pair's two answers.
    A pair is right if the better answer has the larger reward; equal rewards are not. It is "ranked" if that
    answer is the likelier one, which needs no reference.
    """
    rewards, logprobs = rewards.detach(), logprobs.detach()
    margin = rewards[better] - rewards[worse]
    return {
        "tokens": float(len(better)),
        "correct": (margin > 0).sum(),
        "ranked": (logprobs[better] > logprobs[worse]).sum(),
        "reward_chosen": rewards[better].sum(),
        "reward_rejected": rewards[worse].sum(),
        "margin": margin.sum(),
        "logp_chosen": logprobs[better].sum(),
        "logp_rejected": logprobs[worse].sum(),
    }


def pair_means(sums: Mapping[str, Any]) -> dict[str, float]:
    """Return the accuracy and the other means over pairs.  sums: of `pair_sums`, added up."""
    count = sums["tokens"]
    means = {name: value / count for name, value in sums.items() if name not in ("tokens", "correct")}
    return {"accuracy": sums["correct"] / count, **means}


def unpaired_sums(rewards: Tensor, logprobs: Tensor, good: Tensor, z0: Tensor) -> dict[str, Any]:
    """Return what a step on single answers reports, as sums over the answers, which "tokens" counts.

    rewards: (A,) β r.  An answer is right if it is good and r > z₀, or bad and r < z₀.  z0: β z₀.
    """
    rewards, logprobs = rewards.detach(), logprobs.detach()
    right = torch.where(good, rewards > z0, rewards < z0)
    return {
        "tokens": float(len(good)),
        "correct": right.sum(),
        "good": good.sum(),
        "reward_good": (rewards * good).sum(),
        "reward_bad": (rewards * ~good).sum(),
        "logp_good": (logprobs * good).sum(),
        "logp_bad": (logprobs * ~good).sum(),
        "reference_point": z0 * len(good),
    }


def unpaired_means(sums: Mapping[str, Any]) -> dict[str, float]:
    """Return the accuracy, the means over good and over bad answers, the margin between them, and β z₀.

    sums: of `unpaired_sums`, added up; a step may have answers of one kind only.
    """
    count = sums["tokens"]
    counts = {"good": sums["good"], "bad": count - sums["good"]}
    means = {
        f"{what}_{kind}": sums[f"{what}_{kind}"] / number
        for what in ("reward", "logp")
        for kind, number in counts.items()
        if number
    }
    margin = means.get("reward_good", 0.0) - means.get("reward_bad", 0.0)
    point = sums["reference_point"] / count
    return {"accuracy": sums["correct"] / count, **means, "margin": margin, "reference_point": point}
