"""Proximal policy optimisation: rewards of tokens, what they say about each token, and the value's loss.

    r_t = −β kl_t + [t is the last] score                  token_rewards
    δ_t = r_t + γ V_{t+1} − V_t                            V behind the end is 0
    A_t = δ_t + γλ A_{t+1},    R_t = A_t + V_t             advantages
    L_V = ½ max( (V − R)², (clip(V, V_old ± ε) − R)² )     clipped_value

The loss of the policy is `graft.objectives.policy.clipped_policy`. Tensors of tokens are padded, (A, T): A
answers, T tokens of the longest. `live` (A, T) is True for an answer's tokens; they are the first of its row.
What stands elsewhere, be it NaN, changes nothing; results are 0 there.
Schulman et al. 2017, arXiv 1707.06347; for language models Ziegler et al. 2019, arXiv 1909.08593.
"""

import torch
from torch import Tensor

EPSILON = 1e-8  # added to a variance


def token_rewards(scores: Tensor, kl: Tensor, live: Tensor, beta: float) -> Tensor:
    """Return the reward of every token, (A, T): −β kl, and at an answer's last token its score too.

    scores: (A,).  kl: (A, T) of `graft.objectives.policy.divergence`.  Ziegler et al. 2019, eq. 2, by tokens.
    """
    behind = torch.cat([live[:, 1:], torch.zeros_like(live[:, :1])], dim=1)
    rewards = torch.where(live, -beta * kl, 0.0)
    return torch.where(live & ~behind, rewards + scores[:, None], rewards)


def whitened(x: Tensor, live: Tensor, *, shift: bool = True) -> Tensor:
    """Return (x − mean) / √(variance + 1e-8) over all live tokens together.

    shift: False gives the mean back afterwards, as rewards need it: their sign has a meaning.
    The variance is the unbiased one (divided by n − 1), as in TRL's masked_whiten; that of one token is 0.
    """
    count = live.sum()
    x = torch.where(live, x, 0.0)
    mean = x.sum() / count
    centred = torch.where(live, x - mean, 0.0)
    variance = (centred**2).sum() / (count - 1).clamp(min=1)
    scaled = centred * torch.rsqrt(variance + EPSILON)
    return scaled if shift else torch.where(live, scaled + mean, 0.0)


def advantages(
    rewards: Tensor, values: Tensor, live: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Return the advantages and the returns of every token, (A, T) each; the former are not whitened.

    gamma: discount per token.  lam: λ; 0 trusts the value, 1 trusts what was sampled.
    values: (A, T) of the state before the token.  Schulman et al. 2016, arXiv 1506.02438, eq. 16.

    >>> r, v = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.5]])
    >>> advantages(r, v, torch.tensor([[True, True]]), gamma=1.0, lam=1.0)
    (tensor([[0.5000, 0.5000]]), tensor([[1., 1.]]))
    """
    rewards, values = torch.where(live, rewards, 0.0), torch.where(live, values, 0.0)
    following = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    deltas = rewards + gamma * following - values
    advantage, reversed_columns = torch.zeros_like(deltas[:, 0]), []
    for delta in reversed(deltas.unbind(dim=1)):
        advantage = delta + gamma * lam * advantage
        reversed_columns.append(advantage)
    result = torch.stack(reversed_columns[::-1], dim=1)
    return result, result + values


def clipped_value(values: Tensor, old_values: Tensor, returns: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """Return the loss ½ max((V − R)², (V_c − R)²) of every token, and where it is clipped.

    V_c: the value, at most `clip` away from old_values, which the advantages were made with.  A value is
    clipped where the second term is the larger one: then it has no gradient.  All tensors have one shape.
    """
    near = torch.minimum(torch.maximum(values, old_values - clip), old_values + clip)
    free, bounded = (values - returns) ** 2, (near - returns) ** 2
    return torch.maximum(free, bounded) / 2, (bounded > free).detach()


def adapted(beta: float, kl: float, target: float, episodes: int, horizon: int) -> float:
    """Return the next weight β of the KL: larger where the KL exceeds its target, smaller below it.

        e = clip(KL/target − 1, −0.2, 0.2)        β ← β (1 + e · episodes/horizon)

    kl: summed over an answer's tokens, mean over answers.  episodes: answers since the last call.
    horizon: answers after which β has changed by about the share e.  Ziegler et al. 2019, §2.2.

    >>> round(adapted(0.2, kl=9.0, target=6.0, episodes=1000, horizon=10_000), 6)
    0.204
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return beta * (1 + error * episodes / horizon)


def explained_variance(values: Tensor, returns: Tensor, live: Tensor) -> float:
    """Return the share 1 − Var(R − V) / Var(R) of the returns' variance that the value explains.

    1 is perfect, 0 is what the mean of the returns would do, less is worse; 0 where returns do not vary, but
    for rounding.
    """
    rounding = 4 * torch.finfo(returns.dtype).eps
    values, returns = values[live].double(), returns[live].double()
    if len(returns) < 2 or returns.std() <= rounding * returns.abs().max():
        return 0.0
    return float(1 - (returns - values).var() / returns.var())
