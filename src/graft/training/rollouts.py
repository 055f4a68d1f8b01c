"""Rollouts: a source of batches for stages whose answers the model writes itself (`graft.stages.online`).

    rollouts/000003/   answers.safetensors   tokens, log-probabilities, rewards, ... of iteration 3
                       manifest.json         SHA-256, identity of the run, what the next iteration must know

An iteration is written by the adapter as it is before its first step, and kept before that step is taken. So
a run that goes on in the middle of it reads what was written, and one that was killed while it wrote writes
the same again: the draws follow from the seed and the number of the iteration.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from graft import storage
from graft.base.base import Base
from graft.data import noise
from graft.data.batches import Batch
from graft.data.encode import Example
from graft.data.feed import Feed, Source
from graft.data.sampled import Sampled
from graft.errors import CheckpointError, TrainingError, notice
from graft.generate.generate import evaluating
from graft.stages import runaway
from graft.stages.online import Online

FOLDER, FILE = "rollouts", "answers.safetensors"
_PROMPTS, _DRAWS, _ORDER = range(10, 13)  # streams of random numbers, beside those of the feed
# How far the mean ratio of the first step may be from 1: float32, and 16 bits.
CLOSE, CLOSE_16 = 1e-3, 2e-2


class Rollouts(Source):
    """The batches of a run, as a Feed gives them; `step` must be called under the adapter that is trained.

    feed: the prompts.  folder, identity: of the run.  wrote: receives (answers that are written, all).
    """

    def __init__(
        self,
        base: Base,
        adapter: str,
        stage: Online,
        feed: Feed,
        folder: Path,
        identity: Mapping[str, Any],
        wrote: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self.base, self.adapter, self.stage, self.feed = base, adapter, stage, feed
        self.folder, self.identity, self.wrote = folder, json.loads(storage.encode(dict(identity))), wrote
        self.prompts = min(stage.prompts, len(feed.examples))
        self.minibatches = -(-self.prompts // feed.batch_size)
        self.updates = stage.epochs * self.minibatches
        self.iterations = len(feed.examples) // self.prompts  # of an epoch
        self.seconds = 0.0  # that the last iteration took to write and to measure
        self._now: _Iteration | None = None
        self._left = -1  # the iteration whose other steps are left out

    @property
    def examples(self) -> Sequence[Example]:
        """The prompts."""
        return self.feed.examples

    @property
    def steps_per_epoch(self) -> int:
        """Return how many steps it takes until every prompt was asked once, but for what is left over."""
        return self.iterations * self.updates

    def step(self, epoch: int, index: int) -> list[Batch]:
        """Return the micro-batches of a step; none where the policy has moved too far in this iteration."""
        if not 0 <= index < self.steps_per_epoch:
            raise IndexError(f"step {index} of {self.steps_per_epoch}")
        number, at = epoch * self.iterations + index // self.updates, index % self.updates
        if number == self._left:
            return []
        lessons = self._iteration(number, begun=at > 0).lessons
        passed, part = divmod(at, self.minibatches)
        order = noise.shuffled(len(lessons), self.feed.seed, number, passed, _ORDER).tolist()
        share = -(-len(lessons) // self.minibatches)
        return self.feed.micro_batches([lessons[i] for i in order[part * share : (part + 1) * share]])

    def longest(self) -> Batch:
        """Return a micro-batch as large as any that can occur: of the longest prompts and answers."""
        length = max(len(example.ids) for example in self.feed.examples) + self.stage.max_new_tokens
        prompts = -(-self.prompts // self.minibatches)  # of a step
        batches, rows = self.feed.batches, prompts
        if batches.packs:
            size = length + (self.stage.learnt - 1) * self.stage.max_new_tokens
            # A row takes as many prompts as fit, and shorter ones may fill it better than the longest.
            rows = -(-prompts // max(1, batches.max_length // size))
            length += max(0, min(batches.max_length, prompts * size) - size)
        return batches.full(min(self.feed.micro_batch_size, rows), length)

    # What the loop tells, and what a checkpoint keeps

    @property
    def why_none(self) -> str:  # type: ignore[override]
        """Why a step has no batches."""
        if self._now is not None and self._now.number != self._left:
            return "no answer is better than another"
        return "the policy has moved far enough in this iteration"

    def record(self, step: int) -> dict[str, float]:
        """Return what the line of a step says of its iteration: all of it at the first step, else nothing."""
        return dict(self._now.facts) if self._now and step % self.updates == 0 else {}

    def timing(self, step: int) -> dict[str, float]:
        """Return the seconds of writing and measuring, at the first step of an iteration."""
        return {"rollout_seconds": round(self.seconds, 4)} if step % self.updates == 0 else {}

    def check(self, step: int, told: Mapping[str, float]) -> None:
        """Look at what a step has measured, before it is applied.

        step: how many were taken before.  told: what `Online.progress` says.
        Raises TrainingError if the policy that learns is not the one that wrote.
        """
        ratio = told.get("ratio")
        close = CLOSE if self.base.dtype in (torch.float32, torch.float64) else CLOSE_16
        if step % self.updates == 0 and ratio is not None and abs(ratio - 1) > close:
            raise TrainingError(
                f"step {step + 1}: the mean ratio of probabilities is {ratio:.4f} before the first update",
                f"1 within {close:g}: the policy that learns is the one that wrote the answers",
                "its forwards differ in training: look for noise in the method, or a base that is not frozen",
            )
        if self.stage.moved_too_far(told):
            self._left = self._number(step)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must keep, as JSON."""
        return {"left": self._left}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        self._left = int(state.get("left", -1))

    def forget(self, step: int) -> None:
        """Remove the files of iterations that no run needs which goes on from `step` or later."""
        first = self._number(step) - 1  # the next iteration reads what this one remembers
        for path in (self.folder / FOLDER).glob("[0-9]*"):
            if path.name.isdecimal() and int(path.name) < first:
                storage.discard(path)

    def _number(self, step: int) -> int:
        """Return the number of the iteration to which a step belongs."""
        epoch, index = divmod(step, self.steps_per_epoch)
        return epoch * self.iterations + index // self.updates

    # Iterations

    def _iteration(self, number: int, *, begun: bool) -> "_Iteration":
        """Return an iteration, from the folder or written now.  begun: steps were taken on it before."""
        if self._now is None or self._now.number != number:
            before = self._now if self._now and self._now.number == number - 1 else self._read(number - 1)
            self._now = None  # its answers make room
            found = self._read(number)
            if found is None and begun:
                notice(
                    f"iteration {number} is written by a policy that has learnt from it before: the run will "
                    "differ from an undisturbed one"
                )
            self._now = found or self._written(number, before)
        return self._now

    def _place(self, number: int) -> Path:
        return self.folder / FOLDER / f"{number:06d}"

    def _read(self, number: int) -> "_Iteration | None":
        """Return an iteration that the folder holds; None if it holds none, or a damaged or another run's."""
        place = self._place(number)
        if number < 0 or not place.exists():
            return None
        try:
            facts = storage.validate(place)
        except CheckpointError as error:
            notice(f"{error.given}: the answers are written again")
            return None
        if not storage.is_same_run(facts["identity"], self.identity):
            return None
        sampled = Sampled.from_tensors(load_file(place / FILE), self.feed.examples)
        return _Iteration(number, self.stage.lessons(sampled), facts["facts"], facts["memory"])

    def _written(self, number: int, before: "_Iteration | None") -> "_Iteration":
        """Write, measure and keep an iteration."""
        began = time.perf_counter()
        if number and before is None:
            raise CheckpointError(
                f"iteration {number - 1} of the answers is missing or damaged in {self.folder / FOLDER}",
                "that iteration, from which the next one goes on",
                "begin the run again in another folder, from the adapter of the last checkpoint",
            )
        memory = json.loads(storage.encode(before.memory if before else {}))  # a copy
        seed = int(noise.bits(1, self.feed.seed, number, _DRAWS)) & (2**62 - 1)
        with torch.no_grad(), evaluating(self.base):
            sampled = self.stage.write(
                self.base, self.adapter, self.feed, self._asked(number), group=self.stage.group, seed=seed,
                told=lambda what, done, total: self.wrote(done, total),
            )  # fmt: skip
            facts = self.stage.measured(self.base, self.adapter, self.feed, sampled, memory)
        for text in self.stage.troubles(sampled, facts, memory):
            if self.stage.runaway == runaway.STOP:
                raise TrainingError(
                    f"iteration {number}: {text}",
                    "answers to learn from",
                    "or let the same run go on with stage.runaway=warn",
                )
            notice(text)
        tensors = sampled.tensors()
        self._keep(number, tensors, facts, memory)
        self.seconds = time.perf_counter() - began
        sampled = Sampled.from_tensors(tensors, self.feed.examples)  # what a resumed run reads
        return _Iteration(number, self.stage.lessons(sampled), facts, memory)

    def _asked(self, number: int) -> list[int]:
        """Return the rows whose prompts an iteration asks: the next ones of the epoch's permutation."""
        epoch, part = divmod(number, self.iterations)
        order = noise.shuffled(len(self.feed.examples), self.feed.seed, epoch, _PROMPTS).tolist()
        return order[part * self.prompts : (part + 1) * self.prompts]

    def _keep(
        self,
        number: int,
        tensors: Mapping[str, torch.Tensor],
        facts: Mapping[str, float],
        memory: Mapping[str, Any],
    ) -> None:
        needed = sum(t.numel() * t.element_size() for t in tensors.values())
        kept = {"identity": self.identity, "facts": dict(facts), "memory": dict(memory)}

        def commit() -> Path:
            return storage.commit(
                self._place(number), lambda folder: storage.write_tensors(folder / FILE, tensors), kept
            )

        self._place(number).parent.mkdir(parents=True, exist_ok=True)
        storage.sweep(self._place(number).parent)
        storage.retry_while_full(self.folder, needed, commit, notice)


class _Iteration:
    """What is learnt from one iteration, what is reported of it, and what the next one must know."""

    def __init__(
        self, number: int, lessons: Sequence[Example], facts: Mapping[str, float], memory: dict[str, Any]
    ) -> None:
        self.number, self.lessons, self.memory = number, lessons, memory
        self.facts = dict(sorted(facts.items()))  # in the order in which a file gives them back
