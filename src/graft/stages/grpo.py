"""Group-relative policy optimisation: answers to one prompt are compared with each other, without a value.

    A_i = (R_i − mean R) / (std R + 1e-4)      over the `group` answers to one prompt

grpo, dapo, bnpo, dr_grpo    they differ in how tokens and answers are weighed
rloo                         an answer against the mean of the others; its divergence belongs to its reward

The formulas are in `graft.objectives.grpo`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from graft.base.base import Base
from graft.data.feed import Feed
from graft.data.sampled import Sampled
from graft.errors import one_of
from graft.objectives.grpo import (
    answer_losses,
    counted,
    group_advantages,
    leave_one_out,
    token_losses,
    token_weights,
    without_variance,
)
from graft.objectives.lm import Loss
from graft.objectives.policy import answer_sums, divergence, policy_means, policy_sums
from graft.stages.online import Online

SCALES = ("auto", "group", "none")
UNSCALED = ("dr_grpo", "rloo")  # by their papers


@dataclass(frozen=True)
class Grpo(Online):
    objective: str = "grpo"
    group: int = 8  # answers to each prompt
    prompts: int = 16  # prompts that are answered before the model learns from the answers
    beta: float = 0.04  # weight of the divergence from the reference
    missing_end: float = 0.0  # taken off the reward of an answer that is cut off at max_new_tokens
    clip: float = 0.2  # how far the ratio of probabilities may fall below 1 before it is clipped
    clip_high: float = 0.0  # how far it may rise above 1; 0: as far as clip
    # divide by the deviation inside of the group: group, or none; auto: all but dr_grpo and rloo
    scale_rewards: str = "auto"

    layouts: ClassVar = ("prompt",)
    objectives: ClassVar = ("grpo", "dapo", "bnpo", "dr_grpo", "rloo")
    numbers: ClassVar = ("old", "reference", "advantages", "weights")

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("stage.scale_rewards", self.scale_rewards, SCALES)
        self.require("group", self.group >= 2, "2 answers or more, which are compared")
        self.require("clip", self.clip > 0, "a number above 0")
        self.require("clip_high", self.clip_high >= 0, "a number of 0 or more")

    @property
    def divided_by(self) -> str:
        return "answers" if self.objective == "rloo" else counted(self.objective)

    def prepared(
        self, base: Base, adapter: str | None, feed: Feed, sampled: Sampled, memory: dict[str, Any]
    ) -> dict[str, float]:
        numbers, lengths, groups = sampled.numbers, sampled.lengths(), sampled.groups()
        rewards = sampled.rewards["total"]
        scale = self.scale_rewards == "group" or (
            self.scale_rewards == "auto" and self.objective not in UNSCALED
        )
        if self.objective == "rloo":
            far = answer_sums(divergence(numbers["old"], numbers["reference"], "k1"), lengths)
            gained, weights = leave_one_out(rewards - self.beta * far, groups), torch.ones(int(lengths.sum()))
        else:
            gained = group_advantages(rewards, groups, scale=scale)
            weights = token_weights(self.objective, lengths, self.max_new_tokens)
        numbers |= {"advantages": gained.repeat_interleave(lengths), "weights": weights}
        return {
            "reward_deviation": rewards.std().item(),
            "without_variance": without_variance(rewards, groups),
        }

    def loss(self, base: Any, batch: Any) -> Loss:
        new, told, lengths = self.logprobs(base, batch), batch.numbers, batch.lengths()
        high = self.clip_high or None
        if self.objective == "rloo":
            gained = answer_sums(told["advantages"], lengths) / lengths
            losses, clipped = answer_losses(new, told["old"], lengths, gained, self.clip, high)
            actions = answer_sums(new, lengths), answer_sums(told["old"], lengths)
        else:
            reference = told["reference"] if self.beta else None
            losses, clipped = token_losses(
                new, told["old"], reference, told["advantages"], self.clip, high, self.beta
            )
            losses, actions = told["weights"] * losses, (new, told["old"])
        return losses.sum(), {"tokens": float(batch.tokens)} | policy_sums(*actions, clipped)

    def progress(self, sums: Mapping[str, Any]) -> dict[str, float]:
        return policy_means(sums)
