"""Proximal policy optimisation: the model learns from the rewards of its own answers, near a reference.

    r_t = −β kl_t + [t is the last] score      advantages by GAE, whitened over an iteration
    L = L_policy + value_weight · L_value      both clipped; mean over the tokens of a step

A score is the reward less the mean of the first iteration's, where values are 0. The value of a state is told
by a head that is trained beside the policy: on the policy's own states, or on an adapter of its own. The
formulas are in `graft.objectives.ppo`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from graft.base.base import Base
from graft.core.method import Method
from graft.data.feed import Feed
from graft.data.sampled import Sampled
from graft.errors import UsageError, one_of
from graft.methods.task_head import TaskHead
from graft.objectives.lm import Loss, token_logprobs
from graft.objectives.policy import (
    ESTIMATORS,
    clipped_policy,
    divergence,
    flattened,
    live_tokens,
    padded,
    policy_means,
    policy_sums,
)
from graft.objectives.ppo import (
    adapted,
    advantages,
    clipped_value,
    explained_variance,
    token_rewards,
    whitened,
)
from graft.stages.online import Online
from graft.stages.reward_adapters import attached
from graft.stages.rewards import is_function, weights

VALUES = ("trunk", "adapter", "reward")
HEAD = TaskHead(num_labels=1, pool="last", init="zero")


@dataclass(frozen=True)
class Ppo(Online):
    objective: str = "ppo"
    epochs: int = 4  # passes over the answers of an iteration
    kl: str = "k1"  # estimator of the divergence in a token's reward: k1, k2, k3
    # the divergence of an answer, in nats, to which beta is adapted (Ziegler et al. 2019); 0: beta stays
    kl_target: float = 0.0
    kl_horizon: int = 10_000  # answers after which beta has followed
    clip: float = 0.2  # how far the ratio of probabilities may move from 1 before it is clipped
    value_clip: float = 0.2  # how far a value may move from what it was when the answers were written
    value_weight: float = 0.1  # weight of the value's loss
    gamma: float = 1.0  # discount of later rewards, per token
    gae_lambda: float = 0.95  # 0 trusts the value, 1 trusts what was sampled
    whiten_rewards: bool = False  # divide the tokens' rewards by their deviation
    # where values come from: trunk, a head on the policy's states; adapter, one of its own, which costs a
    # second forward; reward, the same, begun from the reward model
    value: str = "trunk"
    value_lr: float = 0.0  # learning rate of the values; 0: that of the policy

    layouts: ClassVar = ("prompt",)
    objectives: ClassVar = ("ppo",)
    numbers: ClassVar = ("old", "values", "returns", "advantages")

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("stage.kl", self.kl, ESTIMATORS)
        one_of("stage.value", self.value, VALUES)
        for key in ("kl_target", "value_weight", "value_lr"):
            self.require(key, getattr(self, key) >= 0, "a number of 0 or more")
        for key in ("clip", "value_clip"):
            self.require(key, getattr(self, key) > 0, "a number above 0")
        for key in ("gamma", "gae_lambda"):
            self.require(key, 0 <= getattr(self, key) <= 1, "from 0 to 1")
        self.require("kl_horizon", self.kl_horizon >= 1, "a whole number above 0")

    def as_planned(self) -> "Ppo":
        return replace(self, value="adapter") if self.value == "reward" else self

    # Values

    def beside(self, base: Base, adapter: str) -> Mapping[str, str]:
        name = values_of(adapter)
        if name in base.adapters:
            base.detach(name)
        with torch.random.fork_rng(devices=[]):  # born the same in every run
            torch.manual_seed(0)
            values = base.attach(name, self._value_methods(base, adapter))
        if self.value == "reward":
            values.restore_checkpoint_state(base.adapters[self._reward_adapter(base)].checkpoint_state())
        return {"values": name}

    def _value_methods(self, base: Base, adapter: str) -> list[Method]:
        lr = self.value_lr or None
        if self.value == "trunk":
            return [replace(HEAD, lr=lr)]
        source = adapter if self.value == "adapter" else self._reward_adapter(base)
        methods = base.adapters[source].methods
        if any(method.in_place for method in methods):
            raise UsageError(
                f"stage.value={self.value} with a method that trains the base's own tensors",
                "stage.value=trunk",
                "or choose a method that adds tensors, such as lora",
            )
        own = [replace(method, lr=lr) for method in methods]
        return own if self.value == "reward" else [*own, replace(HEAD, lr=lr)]

    def _reward_adapter(self, base: Base) -> str:
        """Return the name of the one reward model on the base."""
        names = [attached(base, name) for name in weights(self.rewards) if not is_function(name)]
        if len(names) != 1:
            raise UsageError(
                f"stage.value=reward with {len(names)} reward models in stage.rewards",
                "exactly one, from which the values begin",
                "choose stage.value=trunk or stage.value=adapter",
            )
        return names[0]

    def values(self, base: Base, batch: Any) -> torch.Tensor:
        """Return the value of the state before every token of the answers, (N,), by an adapter of their own.

        The policy is in use.
        """
        with base.using(values_of(str(base.active))):
            return base.head_logits(self.states(base, batch))[:, 0]

    def logprobs_and_values(self, base: Base, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Return log p of every token and the value of the state before it, (N,) each, under the policy."""
        if self.value != "trunk":
            return self.logprobs(base, batch), self.values(base, batch)
        states = self.states(base, batch)
        logprobs = token_logprobs(base, states, batch.labels, self.temperature)[0]
        return logprobs, base.head_logits(states, values_of(str(base.active)))[:, 0]

    # Iteration and loss

    def under_policy(self, base: Base, adapter: str | None, feed: Feed, sampled: Sampled) -> None:
        def both(base: Base, batch: Any) -> torch.Tensor:
            return torch.stack([numbers.float() for numbers in self.logprobs_and_values(base, batch)])

        old, values = self.of_tokens(base, adapter, feed, sampled, both)
        sampled.numbers |= {"old": old, "values": values}

    def prepared(
        self, base: Base, adapter: str | None, feed: Feed, sampled: Sampled, memory: dict[str, Any]
    ) -> dict[str, float]:
        numbers, lengths = sampled.numbers, sampled.lengths()
        live, beta = live_tokens(lengths), memory.setdefault("beta", self.beta)
        values = padded(numbers["values"], lengths)
        kl = padded(divergence(numbers["old"], numbers["reference"], self.kl), lengths)
        # Values are born at 0: rewards are counted from the mean of the first answers, where they are right.
        usual = memory.setdefault("usual", sampled.rewards["total"].mean().item())
        rewards = token_rewards(sampled.rewards["total"] - usual, kl, live, beta)
        if self.whiten_rewards:
            rewards = whitened(rewards, live, shift=False)
        gained, returns = advantages(rewards, values, live, self.gamma, self.gae_lambda)
        found = {"returns": returns, "advantages": whitened(gained, live)}
        numbers |= {name: flattened(tensor, lengths) for name, tensor in found.items()}
        if self.kl_target:
            mean = self.divergence(sampled).mean().item()
            memory["beta"] = adapted(beta, mean, self.kl_target, len(sampled.answers), self.kl_horizon)
        return {
            "beta": beta,
            "value": numbers["values"].mean().item(),
            "explained_variance": explained_variance(values, returns, live),
        }

    def loss(self, base: Any, batch: Any) -> Loss:
        told = batch.numbers
        new, values = self.logprobs_and_values(base, batch)
        policy, clipped = clipped_policy(new, told["old"], told["advantages"], self.clip)
        value, value_clipped = clipped_value(values, told["values"], told["returns"], self.value_clip)
        sums = {
            "tokens": float(len(new)),
            "policy_loss": policy.sum(),
            "value_loss": value.sum(),
            "value_clipped": value_clipped.sum(),
        }
        return policy.sum() + self.value_weight * value.sum(), sums | policy_sums(new, told["old"], clipped)

    def progress(self, sums: Mapping[str, Any]) -> dict[str, float]:
        count = sums["tokens"]
        own = {name: sums[name] / count for name in ("policy_loss", "value_loss")}
        return policy_means(sums) | own | {"value_clip_fraction": sums["value_clipped"] / count}


def values_of(adapter: str) -> str:
    """Return the name of the adapter that tells the values of a policy."""
    return f"{adapter} values"
