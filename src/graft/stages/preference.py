"""Preference tuning without a reward model: of two answers to a prompt, the preferred one becomes likelier.

dpo, hinge, ipo, robust    pairs, held near the reference: the model as training started from it
orpo, simpo                pairs, without a reference
kto                        single answers that are good or bad by themselves, with a reference

A ranking of several answers is learnt as all pairs of it. The formulas are in `graft.objectives.preference`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from graft.base.base import Base
from graft.core.positions import first_position
from graft.data.answer_batches import AnswerBatches
from graft.data.encode import Encoder
from graft.data.feed import Feed
from graft.data.rankings import Judged
from graft.data.unpaired import UnpairedBatches
from graft.errors import UsageError, notice
from graft.generate.generate import evaluating
from graft.objectives import preference as losses
from graft.objectives.lm import Loss
from graft.objectives.preference import (
    answer_logprobs,
    pair_means,
    pair_sums,
    unpaired_means,
    unpaired_sums,
)
from graft.stages import reference
from graft.stages.comparing import Comparing
from graft.stages.stage import Start

WITHOUT_REFERENCE = ("orpo", "simpo")
# Settings that only some objectives read.
READ_BY = {
    "label_smoothing": ("dpo", "robust"),
    "gamma": ("simpo",),
    "desirable_weight": ("kto",),
    "undesirable_weight": ("kto",),
    "sft_weight": ("dpo", "hinge", "ipo", "robust", "simpo", "kto"),
}


@dataclass(frozen=True)
class Preference(Comparing):
    objective: str = "dpo"
    # how strongly the model is held near its reference; of orpo the weight of the odds, of simpo a scale
    beta: float = 0.1
    label_smoothing: float = 0.0  # dpo, robust: share of pairs that are taken to be the wrong way round
    gamma: float = 0.5  # simpo: the margin by which the chosen answer has to win
    desirable_weight: float = 1.0  # kto: weight of good answers
    undesirable_weight: float = 1.0  # kto: weight of bad answers
    sft_weight: float = 0.0  # weight of the supervised loss of chosen, or good, answers, which is added

    layouts: ClassVar = ("preference", "ranking", "judged")
    objectives: ClassVar = ("dpo", "hinge", "ipo", "robust", "kto", "orpo", "simpo")
    metrics: ClassVar = ("loss", "accuracy", "ranked", "margin")
    asks: ClassVar = True

    def __post_init__(self) -> None:
        ranges = [
            ("beta", self.beta > 0, "above 0"),
            ("label_smoothing", 0 <= self.label_smoothing < 0.5, "from 0 to below 0.5"),
            ("gamma", self.gamma >= 0, "0 or more"),
            ("desirable_weight", self.desirable_weight >= 0, "0 or more"),
            ("undesirable_weight", self.undesirable_weight >= 0, "0 or more"),
            ("sft_weight", self.sft_weight >= 0, "0 or more"),
        ]
        for key, fits, expected in ranges:
            if not fits:
                raise UsageError(
                    f"stage.{key}={getattr(self, key)}", f"a number {expected}", "see `graft train --keys`"
                )
        for field in fields(self):
            owners = READ_BY.get(field.name, self.objectives)
            if getattr(self, field.name) != field.default and self.objective not in owners:
                raise UsageError(
                    f"stage.{field.name}={getattr(self, field.name)} with objective {self.objective}",
                    f"objective {' or '.join(owners)}, which read it",
                    "leave it out, or choose one of these",
                )

    @property
    def writes(self) -> bool:
        return True

    @property
    def unpaired(self) -> bool:
        """Whether answers are learnt one by one."""
        return self.objective == "kto"

    # Rows, examples, batches

    def encoder(self, tokenizer: Any, family: str, settings: Any, labels: Sequence[str] = ()) -> Encoder:
        if self.unpaired:
            return Judged(tokenizer, settings.max_length, settings.template, reads=settings.control_tokens)
        return super().encoder(tokenizer, family, settings, labels)

    def batches(self, base: Base, max_length: int, *, pack: bool = False) -> AnswerBatches:
        if self.unpaired:
            first = first_position(base.model.config)
            return UnpairedBatches(base.tokenizer, max_length, pack=pack, first_position=first)
        return super().batches(base, max_length, pack=pack)

    # The reference

    def before_training(
        self, base: Base, start: Start, feeds: Mapping[str, Feed], folder: Path, identity: Mapping[str, Any]
    ) -> Mapping[str, Feed]:
        if self.objective in WITHOUT_REFERENCE:
            return feeds
        if self.unpaired:
            self._check_weights([example.target or 0 for example in feeds["train"].examples])
        return reference.remembered(base, start, feeds, folder, identity)

    def before_scoring(self, base: Base, adapter: str | None, feed: Feed, folder: Path | None) -> Feed:
        if self.objective in WITHOUT_REFERENCE:
            return feed
        return reference.measured(base, adapter, feed, folder)

    def before_step(self, base: Base, batches: Sequence[Any]) -> Sequence[Any]:
        """Give every micro-batch the reference point of the whole step, so that their cut changes nothing."""
        if not self.unpaired:
            return batches
        others = [batch.mismatched.to(base.device) for batch in batches if batch.mismatched is not None]
        if not others:
            return batches
        with torch.no_grad(), evaluating(base):
            ratios = [answer_logprobs(base, other)[0] - other.reference for other in others]
        z0 = losses.reference_point(torch.cat(ratios))
        return [replace(batch, z0=z0) for batch in batches]

    def _check_weights(self, verdicts: Sequence[int]) -> None:
        """Say so where good answers do not weigh 1 to 4/3 times as much as bad ones: KTO, eq. 8.

        verdicts: 1 for every good answer, 0 for every bad one.
        """
        good = self.desirable_weight * sum(verdicts)
        bad = self.undesirable_weight * (len(verdicts) - sum(verdicts))
        if not bad <= good <= 1.34 * bad:
            notice(
                f"all good answers together weigh {good:g}, the bad ones {bad:g}; KTO's authors advise "
                "1 to 1.33 times as much for the good: set stage.desirable_weight or stage.undesirable_weight"
            )

    # Loss and scores

    def loss(self, base: Any, batch: Any) -> Loss:
        logprobs, lengths = answer_logprobs(base, batch)
        means = logprobs / lengths
        if self.unpaired:
            return self._unpaired(logprobs, means, batch)
        ratios = means if self.objective in WITHOUT_REFERENCE else logprobs - batch.reference
        better, worse = batch.pairs()
        pairs = self._pairs(ratios, means, lengths, better, worse)
        if self.sft_weight:
            pairs = pairs + self.sft_weight * losses.chosen_nll(means[better])
        return pairs.sum(), pair_sums(self.beta * ratios, logprobs, better, worse)

    def _pairs(
        self,
        ratios: torch.Tensor,
        means: torch.Tensor,
        lengths: torch.Tensor,
        better: torch.Tensor,
        worse: torch.Tensor,
    ) -> torch.Tensor:
        """Return the loss of every pair."""
        h = ratios[better] - ratios[worse]
        match self.objective:
            case "dpo":
                return losses.dpo(h, self.beta, self.label_smoothing)
            case "robust":
                return losses.robust(h, self.beta, self.label_smoothing)
            case "hinge":
                return losses.hinge(h, self.beta)
            case "ipo":
                averages = ratios / lengths
                return losses.ipo(averages[better] - averages[worse], self.beta)
            case "orpo":
                return losses.orpo(means[better], means[worse], self.beta)
            case _:
                return losses.simpo(means[better], means[worse], self.beta, self.gamma)

    def _unpaired(self, logprobs: torch.Tensor, means: torch.Tensor, batch: Any) -> Loss:
        ratios, good = logprobs - batch.reference, batch.good == 1
        z0 = ratios.new_zeros(()) if batch.z0 is None else batch.z0.to(ratios)
        weights = {"desirable": self.desirable_weight, "undesirable": self.undesirable_weight}
        answers = losses.kto(ratios, good, z0, self.beta, **weights)
        if self.sft_weight:
            answers = answers + self.sft_weight * (good * losses.chosen_nll(means))
        return answers.sum(), unpaired_sums(self.beta * ratios, logprobs, good, self.beta * z0)

    def progress(self, sums: Mapping[str, Any]) -> dict[str, float]:
        return unpaired_means(sums) if self.unpaired else pair_means(sums)

    def scores(self, loss: float, sums: dict[str, Any]) -> dict[str, float]:
        return {"loss": loss, **self.progress(sums), "tokens": sums["tokens"]}
