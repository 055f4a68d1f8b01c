"""What goes wrong when a model learns from its own answers, told from the numbers of one iteration.

divergence   the policy has left its reference: answers that no reward model has ever read
length       answers shrink to nothing, because short ones are paid
entropy      one answer is written again and again, so that nothing new can be learnt
rewards      every answer is paid the same: there is nothing to tell good from bad
groups       the same inside of nearly every group of answers to one prompt
"""

from collections.abc import Mapping
from typing import Any

from graft.data.sampled import Sampled

WARN, STOP, IGNORE = WAYS = ("warn", "stop", "ignore")
HALF = 0.5  # of the first iteration's length
COLLAPSED = 0.2  # of its entropy
NEARLY_ALL = 0.9  # of the groups


def found(
    sampled: Sampled, facts: Mapping[str, float], memory: dict[str, Any], *, kl_limit: float
) -> list[str]:
    """Return a sentence for each kind of trouble that was not told before.

    facts: of the iteration, as `Online.measured` returns them.  memory: of the run; holds the first
    iteration's numbers and the kinds that were told.  kl_limit: in nats for an answer; 0: none.
    """
    first = memory.setdefault("first", {key: facts[key] for key in ("length", "entropy")})
    told = memory.setdefault("told", [])
    troubles = _of_numbers(facts, first, kl_limit) | _of_rewards(sampled)
    new = {kind: text for kind, text in troubles.items() if kind not in told}
    told += new
    return list(new.values())


def _of_numbers(facts: Mapping[str, float], first: Mapping[str, float], kl_limit: float) -> dict[str, str]:
    """Return what is wrong with divergence, lengths and entropy.  first: the first iteration's numbers."""
    troubles = {}
    if kl_limit and facts["kl"] > kl_limit:
        troubles["divergence"] = (
            f"the policy has left its reference: {facts['kl']:.1f} nats an answer, above stage.kl_limit="
            f"{kl_limit:g}; raise stage.beta, or lower train.lr"
        )
    if facts["length"] < HALF * first["length"]:
        troubles["length"] = (
            f"answers have shrunk from {first['length']:.0f} to {facts['length']:.1f} tokens; "
            "look at what is paid: short answers may be"
        )
    if facts["entropy"] < COLLAPSED * first["entropy"]:
        troubles["entropy"] = (
            f"the entropy has fallen from {first['entropy']:.2f} to {facts['entropy']:.3f} nats a token: "
            "answers repeat; raise stage.beta, or lower train.lr"
        )
    return troubles


def _of_rewards(sampled: Sampled) -> dict[str, str]:
    """Return what is wrong with the rewards: all alike, or alike inside of the groups."""
    rewards = sampled.rewards["total"].view(len(sampled.prompts), -1)
    if rewards.numel() > 1 and bool((rewards == rewards[0, 0]).all()):
        text = (
            f"all {rewards.numel()} answers are paid {rewards[0, 0].item():.4g}: none is better; "
            "check the reward, or begin from a model that is sometimes right"
        )
        return {"rewards": text}
    alike = int((rewards == rewards[:, :1]).all(1).sum()) / len(rewards)
    if rewards.shape[1] > 1 and alike >= NEARLY_ALL:
        text = (
            f"{alike:.0%} of the groups have answers of one reward and teach nothing; raise stage.group or "
            "stage.temperature, or take prompts that are neither too easy nor too hard"
        )
        return {"groups": text}
    return {}
