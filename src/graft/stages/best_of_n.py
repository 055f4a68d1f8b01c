"""Rejection sampling: of several answers to a prompt the best paid one is learnt, as in fine-tuning on it.

    y* = argmax R(x, y_i), i = 1 … group      L = − mean log π(y*)

Every iteration is written by the newest policy (RAFT, Dong et al. 2023, arXiv 2304.06767). What the best of n
answers can gain is bounded: its divergence from the policy that wrote is at most log n − (n − 1)/n.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from graft.data.encode import Example
from graft.data.sampled import Sampled
from graft.objectives.lm import Loss, token_logprobs
from graft.stages.online import Online


@dataclass(frozen=True)
class BestOfN(Online):
    objective: str = "best_of_n"
    group: int = 8  # answers to each prompt, of which the best is learnt
    beta: float = 0.0  # has no effect: what is learnt are the policy's own answers
    # share of the prompts whose best answers are learnt: those that are paid best
    share: float = 1.0

    layouts: ClassVar = ("prompt",)
    objectives: ClassVar = ("best_of_n",)
    numbers: ClassVar = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("group", self.group >= 2, "2 answers or more, of which one is the best")
        self.require("share", 0 < self.share <= 1, "above 0 and at most 1")
        self.require("beta", self.beta == 0, "0: nothing holds the model near its reference here")

    def lessons(self, sampled: Sampled) -> list[Example]:
        rewards = sampled.rewards["total"].view(len(sampled.prompts), -1)
        paid, best = rewards.max(1)
        count = max(1, round(self.share * len(best)))
        chosen = paid.argsort(descending=True, stable=True)[:count].sort().values
        return [sampled.example(prompt, [int(best[prompt])]) for prompt in chosen.tolist()]

    def loss(self, base: Any, batch: Any) -> Loss:
        # At temperature 1, as fine-tuning has it: the answers are texts to imitate.
        logprobs, hits = token_logprobs(base, self.states(base, batch), batch.labels)
        return -logprobs.sum(), {"tokens": float(batch.tokens), "correct": hits.sum()}

    def progress(self, sums: Mapping[str, Any]) -> dict[str, float]:
        return {"token_accuracy": sums["correct"] / sums["tokens"]}
