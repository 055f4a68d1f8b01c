"""Group-relative policy optimisation: answers to one prompt are compared with each other, without a value.

    A_i = (R_i − mean R) / (std R + 1e-4)                                mean and std over the prompt's group
    L   = − Σ_i Σ_t w_it [ min( ρ_it A_i, clip(ρ_it, 1 ± ε) A_i ) − β k3_it ] / count

Kinds of the loss differ in the weight w of a token and in what is counted, over all answers of a step:

    grpo      w = 1/|o_i|     answers    each answer counts the same; a token of a long one counts less
    dapo      w = 1           tokens     each token counts the same; its paper has ε_high > ε_low
    bnpo      w = 1           tokens     as dapo: all micro-batches of a step are counted together here
    dr_grpo   w = 1/longest   answers    a constant: lengths do not matter; its paper does not divide by std R

RLOO compares an answer with the mean of the others, and an action is the whole answer.
Shao et al. 2024, arXiv 2402.03300, eq. 3; DAPO: Yu et al. 2025, arXiv 2503.14476; Dr. GRPO: Liu et al. 2025,
arXiv 2503.20783; RLOO: Ahmadian et al. 2024, arXiv 2402.14740; bnpo is TRL's name.
"""

import torch
from torch import Tensor

from graft.errors import one_of
from graft.objectives.policy import answer_sums, clipped_policy, divergence

COUNTED = {"grpo": "answers", "bnpo": "tokens", "dapo": "tokens", "dr_grpo": "answers"}
EPSILON = 1e-4  # added to a standard deviation
SAME = 1e-6  # rewards that differ by less are one reward; above 1, by less than this share of them


def counted(kind: str) -> str:
    """Return what divides the summed loss of a step, "answers" or "tokens".

    Raises UsageError for an unknown kind.
    """
    return COUNTED[one_of("kind", kind, COUNTED)]


def token_weights(kind: str, lengths: Tensor, longest: int) -> Tensor:
    """Return the weight of every token, (N,); the tokens of answers lie one after the other.

    lengths: (A,) tokens of each answer.  longest: the most tokens that an answer may have (max_new_tokens).
    Raises UsageError for an unknown kind.

    >>> token_weights("grpo", torch.tensor([1, 2]), longest=4)
    tensor([1.0000, 0.5000, 0.5000])
    """
    match one_of("kind", kind, COUNTED):
        case "grpo":
            weights = 1 / lengths
        case "dr_grpo":
            weights = torch.full_like(lengths, 1 / longest, dtype=torch.get_default_dtype())
        case _:
            weights = torch.ones_like(lengths, dtype=torch.get_default_dtype())
    return weights.repeat_interleave(lengths)


def group_advantages(rewards: Tensor, group: Tensor, *, scale: bool) -> Tensor:
    """Return each reward less its group's mean, (A,); with `scale` divided by the deviation plus 1e-4.

    group: (A,) the number of the answer's prompt; groups may have different sizes. The deviation is that of
    a sample (n − 1). The answer of a group of one gets 0.

    >>> group_advantages(torch.tensor([1.0, 0.0, 0.0, 1.0]), torch.zeros(4).long(), scale=True)
    tensor([ 0.8659, -0.8659, -0.8659,  0.8659])
    """
    mean, size = _group_means(rewards, group)
    centred = rewards.double() - mean
    if scale:
        variance = _group_means(centred**2, group)[0] * size / (size - 1).clamp(min=1)
        centred = centred / (variance.sqrt() + EPSILON)
    return centred.to(rewards)


def leave_one_out(rewards: Tensor, group: Tensor) -> Tensor:
    """Return each reward less the mean of the others of its group, (A,); 0 in a group of one.

    The distance to the reference belongs to RLOO's rewards: R − β Σ_t k1, with k1 of the policy that wrote
    the answer.  group: (A,) the number of the answer's prompt.
    Kool et al. 2019, "Buy 4 REINFORCE samples, get a baseline for free!"; Ahmadian et al. 2024.

    >>> leave_one_out(torch.tensor([3.0, 0.0, 0.0]), torch.zeros(3).long())
    tensor([ 3.0000, -1.5000, -1.5000])
    """
    mean, size = _group_means(rewards, group)
    return ((rewards.double() - mean) * size / (size - 1).clamp(min=1)).to(rewards)


def without_variance(rewards: Tensor, group: Tensor) -> float:
    """Return the share of groups whose answers all have one reward: they teach nothing."""
    _, owner = torch.unique(group, return_inverse=True)
    start = rewards.new_zeros(int(owner.max()) + 1)
    high = start.scatter_reduce(0, owner, rewards, "amax", include_self=False)
    low = start.scatter_reduce(0, owner, rewards, "amin", include_self=False)
    size = torch.maximum(high.abs(), low.abs()).clamp(min=1)
    return float((high - low <= SAME * size).double().mean())


def token_losses(
    new: Tensor,
    old: Tensor,
    reference: Tensor | None,
    advantages: Tensor,
    low: float,
    high: float | None = None,
    beta: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Return the loss −min(ρ A, clip(ρ) A) + β k3 of every token, (N,), and where its ratio is clipped.

    new, old, reference: (N,) log π, log π_old and log π_ref of the tokens; no reference is no KL.
    advantages: (N,) of the token's answer.  low, high: bounds of the ratio, see `clipped_policy`.
    """
    losses, clipped = clipped_policy(new, old, advantages, low, high)
    if reference is not None:
        losses = losses + beta * divergence(new, reference, "k3")
    return losses, clipped


def answer_losses(
    new: Tensor, old: Tensor, lengths: Tensor, advantages: Tensor, low: float, high: float | None = None
) -> tuple[Tensor, Tensor]:
    """Return RLOO's loss −min(ρ A, clip(ρ) A) of every answer, (A,), and where its ratio is clipped.

    ρ is the ratio of the whole answer's probabilities.  new, old: (N,) log π and log π_old of the tokens.
    lengths, advantages: (A,); the latter of `leave_one_out`.  A step counts answers.
    """
    return clipped_policy(answer_sums(new, lengths), answer_sums(old, lengths), advantages, low, high)


def _group_means(x: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of each answer's group, in double precision, and the group's size: (A,) each."""
    _, owner, sizes = torch.unique(group, return_inverse=True, return_counts=True)
    sums = x.new_zeros(len(sizes), dtype=torch.float64).index_add(0, owner, x.double())
    return (sums / sizes)[owner], sizes[owner]
