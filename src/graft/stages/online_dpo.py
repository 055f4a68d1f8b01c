"""Online DPO: of the model's own answers to a prompt the best paid becomes likelier than the worst paid.

The pairs are new in every iteration, so that the model never learns from answers that it would not write
(Guo et al. 2024, arXiv 2402.04792). The losses are those of `graft.objectives.preference`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from graft.data.encode import Example
from graft.data.sampled import Sampled
from graft.objectives import preference as losses
from graft.objectives.lm import Loss
from graft.objectives.policy import answer_sums
from graft.stages.online import Online


@dataclass(frozen=True)
class OnlineDpo(Online):
    objective: str = "online_dpo"
    group: int = 2  # answers to each prompt: the best and the worst of them are a pair
    beta: float = 0.1  # how strongly the model is held near its reference

    layouts: ClassVar = ("prompt",)
    objectives: ClassVar = ("online_dpo", "online_ipo")
    numbers: ClassVar = ("reference",)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("group", self.group >= 2, "2 answers or more, of which a pair is made")
        self.require("beta", self.beta > 0, "a number above 0")

    @property
    def divided_by(self) -> str:
        return "pairs"

    def lessons(self, sampled: Sampled) -> list[Example]:
        rewards = sampled.rewards["total"].view(len(sampled.prompts), -1)
        best, worst = rewards.argmax(1).tolist(), rewards.argmin(1).tolist()
        differ = (rewards.max(1).values > rewards.min(1).values).tolist()
        return [
            sampled.example(prompt, [best[prompt], worst[prompt]])
            for prompt in range(len(sampled.prompts))
            if differ[prompt]
        ]

    def loss(self, base: Any, batch: Any) -> Loss:
        lengths = batch.lengths()
        logprobs = answer_sums(self.logprobs(base, batch), lengths)
        ratios = logprobs - answer_sums(batch.numbers["reference"], lengths)
        better, worse = batch.pairs()
        if self.objective == "online_ipo":
            means = ratios / lengths
            pairs = losses.ipo(means[better] - means[worse], self.beta)
        else:
            pairs = losses.dpo(ratios[better] - ratios[worse], self.beta)
        return pairs.sum(), losses.pair_sums(self.beta * ratios, logprobs, better, worse)

    def progress(self, sums: Mapping[str, Any]) -> dict[str, float]:
        return losses.pair_means(sums)
