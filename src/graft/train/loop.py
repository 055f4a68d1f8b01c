"""The one training loop: gradients of a step, clip, apply, log, evaluate, save; and going on where a run stopped.

A run is a function of its recipe: what it has done is in its folder, and the same call carries on from there or says
that nothing is left to do. After step n the order of rows, the learning rate and all random draws are the same whether
the process was killed on the way or not.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file

from graft.errors import TrainingError
from graft.train import fs, rng
from graft.train.checkpoint import Checkpoints, Progress, same_run
from graft.train.lock import locked
from graft.train.log import MIB, Clock, Journal, Observer
from graft.train.memory import exhausted, out_of_memory
from graft.train.neftune import Neftune
from graft.train.optimizers import build
from graft.train.paging import Pages
from graft.train.schedule import factor
from graft.train.signals import Interrupted, Signals
from graft.train.step import Measured, Objective, measure, preflight, stop, unsound

if TYPE_CHECKING:
    from graft.base import Base

SKIPS = 3  # steps in a row that on_nan=skip lets pass


@dataclass(frozen=True)
class Hooks:
    """What happens beside the steps.

    evaluate: step -> metrics; "loss" decides which step is best.  sample: () -> texts.  identity: JSON values (settings,
    fingerprints of base and data) under which alone the run may be resumed.
    """

    evaluate: Callable[[int], Mapping[str, float]] | None = None
    sample: Callable[[], Sequence[str]] | None = None
    observer: Observer = Observer()  # noqa: RUF009  without state
    identity: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Result:
    """A finished run.  loss: of its last step; best: {"step", "loss"} of the best evaluation; adapter: its folder."""

    steps: int
    loss: float | None
    tokens: int
    best: dict[str, Any] | None
    adapter: Path


class Trainer:
    """Trains one adapter of a base into a run folder.

    feed: `steps_per_epoch` and `step(epoch, index) -> micro-batches`, a pure function.  objective: (base, batch) ->
    (loss summed over the supervised tokens, metrics).  settings: the recipe's `train:` section.
    """

    def __init__(
        self,
        base: "Base",
        name: str,
        feed: Any,
        objective: Objective,
        settings: Any,
        run: str | Path,
        hooks: Hooks = Hooks(),
    ) -> None:
        self.base, self.adapter, self.feed, self.objective = base, base.adapters[name], feed, objective
        self.settings, self.folder, self.hooks, self.observer = settings, Path(run), hooks, hooks.observer
        self.total = settings.max_steps or math.ceil(settings.epochs * feed.steps_per_epoch)
        self.progress = Progress()

    def run(self) -> Result:
        """Train to the end, from wherever the folder says. Raises Interrupted, TrainingError, SpaceError, CheckpointError."""
        with locked(self.folder), Signals() as signals:
            done = self._finished()
            if done is not None:
                return done
            with self._open():
                self._begin()
                while not self._over():
                    self._advance()
                    if signals.received and not self._over():
                        self._save()
                        raise Interrupted(signals.received, self.progress.step)
                return self._finish()

    # Start

    @contextlib.contextmanager
    def _open(self) -> Iterator[None]:
        """The run's files, optimizer and switches, closed and put back afterwards."""
        s, base = self.settings, self.base
        fs.sweep(self.folder)
        fs.sweep(self.folder / "checkpoints")
        self.checkpoints = Checkpoints(self.folder, self.hooks.identity or {}, s.keep, self._warn)
        self.metrics, self.samples = Journal(self.folder / "metrics.jsonl"), Journal(self.folder / "samples.md")
        self.timing, self.clock = Journal(self.folder / "timing.jsonl"), Clock(base.device)
        pages = Pages(int(s.paged_budget_mb * MIB), self.folder)
        groups = [{"weight_decay": s.weight_decay, **group} for group in self.adapter.param_groups(s.lr)]
        named = dict(self.adapter.named_parameters())
        reserve = lambda: build(s.optimizer, named, groups, pages, betas=tuple(s.betas), eps=s.eps)
        self.optimizer = fs.patiently(self.folder, 8 * self.adapter.count(), reserve, self._warn)
        self.noise = Neftune(base.model.get_input_embeddings(), s.neftune_alpha)
        base.checkpointing(s.gradient_checkpointing)
        if s.compile:
            base.compile()
        try:
            with base.using(self.adapter.name):
                yield
        finally:
            self.noise.remove()
            base.train(False)
            base.checkpointing(False)
            for journal in (self.metrics, self.samples, self.timing):
                journal.close()

    def _begin(self) -> None:
        """Go on from the newest checkpoint, or from the start after a dry run of the longest batch."""
        restored = self.checkpoints.restore(self.adapter, self.optimizer)
        self.progress = restored or Progress()
        for name, journal in self._journals():
            journal.cut(self.progress.lengths.get(name, 0))
        self.observer.start(
            {
                "steps": self.total,
                "steps_per_epoch": self.feed.steps_per_epoch,
                "done": self.progress.step,
                "trained": self.adapter.count(),
                "optimizer_bytes": self.optimizer.states.resident_bytes + self.optimizer.states.paged_bytes,
            }
        )
        if restored:
            self.timing.record({"resumed": self.progress.step})
            self.observer.resumed(self.progress.step)
        else:
            rng.seed(self.settings.seed)
            self._guarded(
                [self.feed.longest()], lambda batches: preflight(self.base, self.adapter, self.objective, batches[0])
            )

    def _finished(self) -> Result | None:
        """What the folder says of a run that came to its end."""
        if not (self.folder / "finished.json").exists() or not (self.folder / "adapter").exists():
            return None
        record = fs.decode(self.folder / "finished.json")
        same_run(self.folder, record.pop("identity"), self.hooks.identity or {})
        self.observer.finished(record)
        return Result(**{**record, "adapter": self.folder / "adapter"})

    # Steps

    def _over(self) -> bool:
        patience = self.settings.patience
        return self.progress.step >= self.total or bool(patience and self.progress.waited >= patience)

    def _advance(self) -> None:
        """One optimizer step and what is due after it."""
        p, s = self.progress, self.settings
        epoch, index = divmod(p.step, self.feed.steps_per_epoch)
        self.base.train(True, dropout=s.dropout)
        arm = self.noise.arm
        batches = self.feed.step(epoch, index)
        measured = self._guarded(batches, lambda b: measure(self.base, self.adapter, self.objective, b, arm))
        rate = factor(s.schedule, p.step, self.total, s.warmup)
        p.step += 1
        p.tokens += measured.tokens
        if measured.trouble:
            self._skip(measured, s.lr * rate)
        else:
            self._apply(measured, rate)
        self._log(measured, s.lr * rate)
        improved = self._evaluate() if self._due(s.eval_every or self.feed.steps_per_epoch) else False
        if self._due(s.save_every) or (improved and s.patience) or self._over():
            self._save()

    def _due(self, every: int) -> bool:
        return self.progress.step % every == 0 or self.progress.step == self.total

    def _apply(self, measured: Measured, rate: float) -> None:
        if self.settings.clip:
            torch.nn.utils.clip_grads_with_norm_(
                self.adapter.parameters(), self.settings.clip, torch.tensor(measured.norm)
            )
        self.optimizer.step(rate)
        for parameter in self.adapter.parameters():
            parameter.grad = None
        self.adapter.after_step(self.progress.step, self.total)
        self.progress.skipped, self.progress.loss = 0, measured.loss

    def _skip(self, measured: Measured, lr: float) -> None:
        """Leave a step that is not finite unapplied, or stop."""
        self.progress.skipped += 1
        error = stop(self.progress.step, measured, lr, self.base)
        if self.settings.on_nan == "stop" or self.progress.skipped > SKIPS:
            raise error
        self._warn(f"{error.given}: skipped ({self.progress.skipped} in a row)")

    def _guarded(self, batches: Sequence[Any], action: Callable[[Sequence[Any]], Any]) -> Any:
        """`action(batches)`, where running out of memory becomes advice."""
        try:
            return action(batches)
        except (RuntimeError, MemoryError) as error:
            if not exhausted(error):
                raise
            shape = max((tuple(batch.labels.shape) for batch in batches), key=math.prod)
        raise out_of_memory(
            self.base, self.adapter, self.settings, shape
        )  # outside: the traceback would hold the tensors

    # What is written

    def _log(self, measured: Measured, lr: float) -> None:
        p = self.progress
        record = {"step": p.step, "epoch": round(p.step / self.feed.steps_per_epoch, 4)}
        if measured.trouble:
            record |= {"skipped": measured.trouble, "lr": lr}
        else:
            record |= {"loss": measured.loss, "lr": lr, "grad_norm": measured.norm}
            if "correct" in measured.metrics:
                record["accuracy"] = measured.metrics["correct"] / measured.tokens
        record["tokens"] = p.tokens
        timing = {"step": p.step, **self.clock.lap(measured.tokens)}
        self.metrics.record(record)
        self.timing.record(timing)
        self.observer.step({**record, **timing})

    def _evaluate(self) -> bool:
        """Evaluate and sample without touching the run's random draws; whether this was the best step so far."""
        p, improved = self.progress, False
        self.base.train(False)
        with rng.preserved(), torch.no_grad():
            if self.hooks.evaluate:
                found = self.hooks.evaluate(p.step)
                record = {"step": p.step, "epoch": round(p.step / self.feed.steps_per_epoch, 4)}
                record |= {f"eval_{key}": value for key, value in found.items()}
                self.metrics.record(record)
                self.observer.evaluated(record)
                improved = self._judge(found.get("loss"))
            if self.hooks.sample:
                texts = list(self.hooks.sample())
                self.samples.add(f"## step {p.step}\n\n" + "".join(f"{text}\n\n---\n\n" for text in texts))
                self.observer.sampled(texts)
        self.clock.lap(0)  # what was spent here is not the next step's
        return improved

    def _judge(self, loss: float | None) -> bool:
        if loss is None:
            return False
        improved = self.progress.best is None or loss < self.progress.best["loss"]
        if improved:
            self.progress.best = {"step": self.progress.step, "loss": loss}
        self.progress.waited = 0 if improved else self.progress.waited + 1
        return improved

    def _save(self) -> None:
        """Commit a checkpoint of sound tensors."""
        self._sound(self.adapter.tensors())
        self.progress.lengths = {name: journal.settle() for name, journal in self._journals()}
        self.observer.saved(self.checkpoints.save(self.progress, self.adapter, self.optimizer))

    def _sound(self, tensors: dict[str, torch.Tensor]) -> None:
        if bad := unsound(tensors):
            raise TrainingError(
                f"step {self.progress.step}: {', '.join(bad[:8])} hold a NaN or an infinity",
                "finite adapter tensors; nothing was saved over the last checkpoint",
                "lower train.lr or train.clip and run again: it goes on from the last checkpoint",
            )

    def _journals(self) -> list[tuple[str, Journal]]:
        return [("metrics.jsonl", self.metrics), ("samples.md", self.samples)]

    def _warn(self, text: str) -> None:
        self.timing.record({"warning": text})
        self.observer.warn(text)

    # End

    def _finish(self) -> Result:
        """Save the adapter (the best one where early stopping chose), read it again, and mark the run as finished."""
        p, target = self.progress, self.folder / "adapter"
        if self.settings.patience and p.best:
            self.adapter.restore(self.checkpoints.adapter(p.best["step"]))
        state = self.adapter.state()
        self._sound(state)
        needed = sum(t.numel() * t.element_size() for t in state.values())
        fs.patiently(self.folder, needed, lambda: fs.commit(target, self.adapter.save), self._warn)
        fs.validate(target)
        record = {"steps": p.step, "loss": p.loss, "tokens": p.tokens, "best": p.best, "adapter": "adapter"}
        fs.replace(self.folder / "finished.json", fs.encode({**record, "identity": dict(self.hooks.identity or {})}))
        self.observer.saved(target)
        self.observer.finished(record)
        return Result(**{**record, "adapter": target})
