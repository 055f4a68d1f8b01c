"""What stages have in common whose rows only ask: the model writes the answers that it learns from.

    write      `group` answers to each of `prompts` prompts, by the adapter as it is now
    measure    log-probabilities under it and under the reference, rewards, what the stage adds
    learn      `epochs` passes over the answers, `train.batch_size` prompts a step

These three are one iteration; `graft.training.rollouts` runs them, and keeps what was written in the run's
folder before the first step on it. Policy, reference, reward and value are adapters on one base, which is in
memory once. The adapter's dropout is off in all of them: else the policy would not be the one that wrote.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from graft.base.base import Base
from graft.core.positions import first_position
from graft.data.encode import Encoder, Example
from graft.data.feed import Feed
from graft.data.prompt_encoder import PromptEncoder, asked_of
from graft.data.rows import ASKING, Row
from graft.data.sampled import Sampled, SampledBatches
from graft.data.templates import Jinja, Prompt, source
from graft.errors import UsageError, one_of
from graft.generate.generate import evaluating
from graft.generate.prompts import end_tokens
from graft.generate.request import continuation
from graft.objectives.lm import forward_keywords, token_logprobs
from graft.objectives.policy import answer_sums
from graft.stages import reference, runaway
from graft.stages.reward_adapters import attached
from graft.stages.rewards import Answered, combined, fingerprints, is_function, scores, weights
from graft.stages.sft import by_template
from graft.stages.stage import Stage, Start

AT_ONCE = 32  # answers that are written at once
PLACE = "place"  # the number of a token among all tokens of an iteration
Told = Callable[[str, int, int], None]  # (what, done, total)


def silent(what: str, done: int, total: int) -> None:
    """Report no progress."""


@dataclass(frozen=True)
class Online(Stage):
    """Base class of online stages. It declares no layouts, so it is no stage itself."""

    # what answers are paid by: {name: weight}, a name or several. A name is the folder of a run of stage
    # reward or of its adapter, or a function (package.module:function, file.py:function)
    rewards: dict[str, float] | tuple[str, ...] | str = ()
    # a reward of held-out answers that nothing is learnt from: it shows where rewards are cheated
    judge: str = ""
    prompts: int = 64  # prompts that are answered before the model learns from the answers
    group: int = 1  # answers to each prompt
    epochs: int = 1  # passes over these answers
    max_new_tokens: int = 128  # longest answer
    temperature: float = 1.0  # of sampling, and of every log-probability
    stop: tuple[str, ...] = ()  # texts that end an answer
    beta: float = 0.05  # weight of the divergence from the reference
    missing_end: float = 1.0  # taken off the reward of an answer that is cut off at max_new_tokens
    # bring the rewards of reward models to mean 0 and deviation 1 on the first answers
    normalise: bool = True
    # where the divergence, the lengths, the entropy or the rewards run away: warn, stop or ignore
    runaway: str = "warn"
    kl_limit: float = 50.0  # the divergence of an answer, in nats, from which on it has run away; 0: none
    # leave the other steps of an iteration out where the policy has moved so far from the one that wrote, by
    # ½ mean (log ratio)²; 0: never
    stop_kl: float = 0.0

    families: ClassVar = ("causal",)
    metrics: ClassVar = ("loss", "reward", "judge", "kl", "length", "ended")
    packs: ClassVar = True  # a prompt is computed once for all of its answers
    online: ClassVar = True
    numbers: ClassVar[tuple[str, ...]] = ("old", "reference")  # of every token, which the loss reads

    def __post_init__(self) -> None:
        whole = ("prompts", "group", "epochs", "max_new_tokens")
        for key in whole:
            self.require(key, getattr(self, key) >= 1, "a whole number above 0")
        self.require("temperature", 0 < self.temperature < math.inf, "a number above 0")
        for key in ("beta", "missing_end", "kl_limit", "stop_kl"):
            self.require(key, 0 <= getattr(self, key) < math.inf, "a number of 0 or more")
        self.require("stop", "" not in self.stop, "texts that are not empty")
        one_of("stage.runaway", self.runaway, runaway.WAYS)
        if self.rewards:  # rows are shown, and memory is planned, without any
            weights(self.rewards)

    def require(self, key: str, fits: bool, expected: str) -> None:
        """Raise UsageError for a setting that does not fit."""
        if not fits:
            raise UsageError(f"stage.{key}={getattr(self, key)}", expected, "see `graft train --keys`")

    def check_complete(self) -> None:
        weights(self.rewards)

    @property
    def writes(self) -> bool:
        return True

    @property
    def paying(self) -> list[str]:
        """The names of all rewards, and of the judge."""
        return [*weights(self.rewards), *([self.judge] if self.judge else [])]

    @property
    def divided_by(self) -> str:
        """What the loss of a step is divided by: tokens, answers or pairs (see `SampledBatches`)."""
        return "tokens"

    @property
    def learnt(self) -> int:
        """How many answers to a prompt are learnt from, of those that are written."""
        return self.group

    # Rows and batches

    def template(self, settings: Any, tokenizer: Any) -> Jinja | None:
        return source(tokenizer, settings.template)

    def asks_by_template(self, settings: Any) -> bool:
        return by_template(settings, self.accepts())

    def encoder(self, tokenizer: Any, family: str, settings: Any, labels: Sequence[str] = ()) -> Encoder:
        room = settings.max_length - self.max_new_tokens
        if room < 1:
            raise UsageError(
                f"data.max_length={settings.max_length} and stage.max_new_tokens={self.max_new_tokens}",
                "room for a prompt beside the answer",
                "raise data.max_length, or lower stage.max_new_tokens",
            )
        return PromptEncoder(tokenizer, room, settings.template, reads=settings.control_tokens)

    def batches(self, base: Base, max_length: int, *, pack: bool = False) -> SampledBatches:
        return SampledBatches(
            base.tokenizer,
            max_length,
            pack=pack,
            first_position=first_position(base.model.config),
            answers=self.learnt,
            counts=self.divided_by,
            numbers=self.numbers,
            longest=self.max_new_tokens,
        )

    def questions(self, rows: Sequence[Row]) -> Sequence[Prompt]:
        asked = [row.value[0] for row in rows if row.kind == ASKING]
        return list({repr(prompt): prompt for prompt in asked}.values())

    # Start

    def depends(self, base: Base) -> Mapping[str, Any]:
        # Adapters that are named are part of every run's identity by their content.
        functions = [name for name in self.paying if is_function(name)]
        paid_by = {f"fingerprint of {name}": value for name, value in fingerprints(base, functions).items()}
        return {**paid_by, "end tokens of the base": end_tokens(base, chat=False)}

    def before_training(
        self, base: Base, start: Start, feeds: Mapping[str, Feed], folder: Path, identity: Mapping[str, Any]
    ) -> Mapping[str, Feed]:
        for name in self.paying:
            if not is_function(name):
                attached(base, name)
        reference.beside(base, start, folder, identity)
        return feeds

    def before_scoring(self, base: Base, adapter: str | None, feed: Feed, folder: Path | None) -> Feed:
        reference.found(base, adapter, folder)
        return feed

    # Write and measure

    def write(
        self, base: Base, adapter: str | None, feed: Feed, places: Sequence[int], *, group: int, seed: int,
        told: Told = silent,
    ) -> Sampled:  # fmt: skip
        """Return `group` answers to each of these rows.  seed: of the draws.  told: receives the progress."""
        prompts = [feed.examples[place] for place in places]
        chat = any(not isinstance(asked_of(prompt)[0], str) for prompt in prompts)
        asked = [list(prompt.ids) for prompt in prompts for _ in range(group)]
        done = base.complete(
            asked,
            adapters=[adapter] * len(asked),
            batch_size=AT_ONCE,
            max_new_tokens=self.max_new_tokens,
            do_sample=True,
            temperature=self.temperature,
            stop=tuple(self.stop),
            stop_token_ids=tuple(end_tokens(base, self.stop, chat=chat)),
            seed=seed,
            progress=lambda ended, total: told("answers", ended, total),
        )
        ended = [completion.finish_reason == "stop" for completion in done]
        return Sampled(prompts, places, [completion.tokens for completion in done], ended)

    def measured(
        self, base: Base, adapter: str | None, feed: Feed, sampled: Sampled, memory: dict[str, Any]
    ) -> dict[str, float]:
        """Give answers their numbers and rewards, and return what an iteration reports.

        memory: of the iterations before; what the next one has to know is written into it.
        """
        self.under_policy(base, adapter, feed, sampled)
        self.under_reference(base, adapter, feed, sampled)
        rewards = self.paid(base, sampled, weights(self.rewards), memory)
        kl = self.divergence(sampled)
        facts = {
            "reward": rewards.mean().item(),
            **_parts(sampled.rewards),
            "kl": kl.mean().item(),
            "length": sampled.lengths().float().mean().item(),
            "ended": sum(sampled.ended) / len(sampled.ended),
            # Of sampled tokens the mean of -log p is the policy's entropy, in expectation.
            "entropy": -sampled.numbers["old"].mean().item(),
        }
        sampled.rewards["total"] = rewards
        return facts | self.prepared(base, adapter, feed, sampled, memory)

    def prepared(
        self, base: Base, adapter: str | None, feed: Feed, sampled: Sampled, memory: dict[str, Any]
    ) -> dict[str, float]:
        """Add what the loss reads beside log-probabilities; return what of it an iteration reports."""
        return {}

    def moved_too_far(self, told: Mapping[str, float]) -> bool:
        """Return whether the other steps of an iteration are left out.  told: of a step, by `progress`."""
        return bool(self.stop_kl) and told.get("approximate_kl", 0.0) > self.stop_kl

    def lessons(self, sampled: Sampled) -> list[Example]:
        """Return what is learnt from an iteration: a prompt with answers each."""
        return sampled.examples()

    def under_policy(self, base: Base, adapter: str | None, feed: Feed, sampled: Sampled) -> None:
        """Add "old", log p of every token under the policy, and what else its forward tells."""
        sampled.numbers["old"] = self.of_tokens(base, adapter, feed, sampled, self.logprobs)

    def under_reference(self, base: Base, adapter: str | None, feed: Feed, sampled: Sampled) -> None:
        """Add "reference", log p of every token under the reference."""
        held = reference.name_of(base, adapter)
        same = held == adapter
        sampled.numbers["reference"] = (
            sampled.numbers["old"] if same else self.of_tokens(base, held, feed, sampled, self.logprobs)
        )

    def logprobs(self, base: Base, batch: Any) -> torch.Tensor:
        """Return log p of every token of the answers, (N,), at the stage's temperature."""
        states = self.states(base, batch)
        return token_logprobs(base, states, batch.labels, self.temperature)[0]

    def states(self, base: Base, batch: Any) -> torch.Tensor:
        """Return the states that predict the tokens of the answers, (N, D)."""
        return base.hidden(**forward_keywords(batch)).flatten(0, 1)[batch.states]

    def of_tokens(
        self,
        base: Base,
        adapter: str | None,
        feed: Feed,
        sampled: Sampled,
        compute: Callable[[Base, Any], torch.Tensor],
    ) -> torch.Tensor:
        """Return what `compute` gives for the tokens of every batch, in the order of `sampled`, in fp32.

        compute: (base, batch) -> (n,), or (k, n) for k numbers of each token.  Returns (N,), or (k, N).
        """
        count = sum(map(len, sampled.answers))
        numbered = replace(sampled, numbers={PLACE: torch.arange(count, dtype=torch.float64)})
        batches = self.batches(base, feed.batches.max_length, pack=feed.batches.packs)
        batches.numbers = (PLACE,)
        apart, found = replace(feed, batches=batches), torch.zeros(0)
        with torch.no_grad(), evaluating(base), base.using(adapter):
            for batch in apart.micro_batches(numbered.examples()):
                values = compute(base, batch.to(base.device))
                found = found if found.numel() else torch.zeros(*values.shape[:-1], count)
                found[..., batch.numbers[PLACE].long()] = values.float().cpu()  # type: ignore[attr-defined]
        return found

    def divergence(self, sampled: Sampled) -> torch.Tensor:
        """Return log π(y) − log π_ref(y) of every answer, (A,): summed over its tokens, unbiased (k1)."""
        difference = sampled.numbers["old"] - sampled.numbers["reference"]
        return answer_sums(difference, sampled.lengths())

    def paid(
        self, base: Base, sampled: Sampled, names: Mapping[str, float], memory: dict[str, Any]
    ) -> torch.Tensor:
        """Return the reward of every answer, (A,), and keep its parts in `sampled.rewards`."""
        given = answered(base, sampled, self.stop)
        found = scores(base, names, given)
        for name, values in found.items():
            sampled.rewards[name] = torch.tensor([math.nan if v is None else float(v) for v in values])
        if self.normalise:
            found = {name: _normal(name, values, memory) for name, values in found.items()}
        total = torch.tensor(combined(found, names, [one.source for one in given]))
        return total - self.missing_end * (1 - torch.tensor(sampled.ended).float())

    def troubles(self, sampled: Sampled, facts: Mapping[str, float], memory: dict[str, Any]) -> list[str]:
        """Return what has run away in an iteration, a sentence each; what was said before is left out."""
        if self.runaway == runaway.IGNORE:
            return []
        return runaway.found(sampled, facts, memory, kl_limit=self.kl_limit)

    # Scores

    def summed(self, base: Base, feed: Feed, told: Told = silent) -> tuple[float, dict[str, Any]]:
        """Return minus the mean reward of one answer to each held-out prompt, and sums over these answers.

        The draws are the same at every evaluation.
        """
        places = range(len(feed.examples))
        adapter = base.active
        sampled = self.write(base, adapter, feed, places, group=1, seed=0, told=told)
        sampled.numbers["old"] = self.of_tokens(base, adapter, feed, sampled, self.logprobs)
        self.under_reference(base, adapter, feed, sampled)
        plain = replace(self, normalise=False)
        rewards = plain.paid(base, sampled, weights(self.rewards), {})
        count = len(sampled.answers)
        sums = {
            "tokens": float(count),
            "reward": rewards.sum().item(),
            **{name: mean * count for name, mean in _parts(sampled.rewards).items()},
            "kl": self.divergence(sampled).sum().item(),
            "length": sampled.lengths().sum().item(),
            "ended": float(sum(sampled.ended)),
        }
        if self.judge:
            given = answered(base, sampled, self.stop)
            sources = [one.source for one in given]
            marks = combined(scores(base, [self.judge], given), {self.judge: 1.0}, sources)
            sums |= {"judge": sum(marks), "judge_squared": sum(mark * mark for mark in marks)}
        return 0.0 - rewards.mean().item(), sums  # never -0

    def scores(self, loss: float, sums: dict[str, Any]) -> dict[str, float]:
        count = sums["tokens"]
        squared = sums.pop("judge_squared", None)
        means = {name: value / count for name, value in sums.items() if name != "tokens"}
        if squared is not None:
            variance = max(squared / count - means["judge"] ** 2, 0.0)
            means["judge_error"] = math.sqrt(variance / max(count - 1, 1))
        return {"loss": loss, **means, "answers": count}

    def warning(self, earlier: Sequence[Mapping[str, float]], now: Mapping[str, float]) -> str | None:
        """Say so where the reward has risen while the judge has fallen, by more than two standard errors.

        earlier: the scores of the evaluations before. Compared is the one that the judge liked best.
        """
        if not self.judge or not earlier:
            return None
        best = max(earlier, key=lambda scores: scores["judge"])
        error = math.hypot(best["judge_error"], now["judge_error"])
        if now["reward"] <= best["reward"] or now["judge"] >= best["judge"] - 2 * error:
            return None
        return (
            f"the reward rises ({best['reward']:.3g} to {now['reward']:.3g}) while the judge {self.judge} "
            f"falls ({best['judge']:.3g} to {now['judge']:.3g}): the model learns to please the reward, "
            "not to answer better; read some answers, raise stage.beta, or mend the reward"
        )


def answered(base: Base, sampled: Sampled, stops: Sequence[str] = ()) -> list[Answered]:
    """Return answers as rewards see them.  stops: texts that ended them, which are cut off."""
    found = []
    for number, (ids, ended) in enumerate(zip(sampled.answers, sampled.ended, strict=True)):
        example = sampled.prompts[number // sampled.group]
        prompt, columns = asked_of(example)
        text = continuation(base.tokenizer, list(example.ids), list(ids))
        text = min((text.partition(stop)[0] for stop in stops), key=len, default=text)
        found.append(Answered(prompt, columns, example.ids, ids, text, ended, example.source))
    return found


def _normal(name: str, values: Sequence[float | None], memory: dict[str, Any]) -> list[float | None]:
    """Return the rewards of a reward model on the scale of its first answers; those of functions as they are.

    Huang et al. 2024, arXiv 2403.17031, §"reward normalization": mean 0, deviation 1 on the reference's.
    """
    if is_function(name):
        return list(values)
    if name not in memory.setdefault("scales", {}):
        known = torch.tensor([value for value in values if value is not None], dtype=torch.float64)
        deviation = known.std(correction=0).item()
        memory["scales"][name] = [known.mean().item(), deviation if deviation > 0 else 1.0]
    mean, deviation = memory["scales"][name]
    return [None if value is None else (value - mean) / deviation for value in values]


def _parts(rewards: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Return the mean of each reward over the answers to which it applies; what applies to none is left out.

    rewards: (A,) each, by name, NaN where it does not apply.
    """
    short = Counter(map(_short, rewards))
    labels = {name: _short(name) if short[_short(name)] == 1 else name for name in rewards}
    known = {name: values[~values.isnan()] for name, values in rewards.items()}
    return {f"reward_{labels[name]}": values.mean().item() for name, values in known.items() if len(values)}


def _short(name: str) -> str:
    """Return the last part of the name of a reward, for the names of numbers.

    >>> _short("runs/reward/adapter"), _short("shop.rules:price_last")
    ('reward', 'price_last')
    """
    parts = [part for part in name.replace(":", "/").split("/") if part not in ("", "adapter")]
    return parts[-1]
