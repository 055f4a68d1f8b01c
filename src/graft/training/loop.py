"""The one training loop: gradients of a step, clip, apply, log, evaluate, save; and going on where a run stopped.

A run is a function of its recipe: what it has done is in its folder, and the same call carries on from there or says
that nothing is left to do. After step n the order of rows, the learning rate and all random draws are the same whether
the process was killed on the way or not.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from graft import storage
from graft.errors import TrainingError
from graft.sizes import MIB
from graft.training import rng
from graft.training.checkpoint import Checkpoints, Progress, same_run
from graft.training.lock import locked
from graft.training.log import Observer, RunLog
from graft.training.memory import advice
from graft.training.neftune import Neftune
from graft.training.optimizers import AdamW, build
from graft.training.paging import Pages
from graft.training.parking import parked
from graft.training.schedule import factor
from graft.training.signals import Interrupted, Signals
from graft.training.step import Measured, Objective, measure, preflight, stop, unsound

if TYPE_CHECKING:
    from graft.base.base import Base

SKIPS = 3  # steps in a row that on_nan=skip lets pass


@dataclass(frozen=True)
class Task:
    """What a run does.

    feed: `steps_per_epoch`, and `step(epoch, index) -> micro-batches`, a pure function.
    objective: (base, batch) -> (loss summed over the supervised tokens, metrics).
    evaluate: step -> metrics; "loss" decides which step is best.  sample: () -> answers to the sample prompts.
    identity: JSON values (settings, fingerprints of base and data) under which alone the run may be resumed.
    """

    feed: Any
    objective: Objective
    evaluate: Callable[[int], Mapping[str, float]] | None = None
    sample: Callable[[], Sequence[str]] | None = None
    identity: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """A finished run.  loss: of its last step; best: {"step", "loss"} of the best evaluation; adapter: its folder."""

    steps: int
    loss: float | None
    tokens: int
    best: dict[str, Any] | None
    adapter: Path


class Trainer:
    """Trains one adapter of a base into a run folder.  settings: the recipe's `train:` section."""

    def __init__(
        self,
        base: "Base",
        name: str,
        task: Task,
        settings: Any,
        run: str | Path,
        observer: Observer | None = None,
    ) -> None:
        self.base, self.adapter, self.task, self.feed = base, base.adapters[name], task, task.feed
        self.settings, self.folder, self.observer = settings, Path(run), observer or Observer()
        self.total = settings.max_steps or math.ceil(settings.epochs * task.feed.steps_per_epoch)
        self.progress = Progress()

    def run(self) -> Result:
        """Train to the end, from wherever the folder says.

        Raises Interrupted, TrainingError, SpaceError, CheckpointError.
        """
        with locked(self.folder), Signals() as signals:
            done = self._finished()
            if done is not None:
                return done
            with parked(self.adapter, self.folder), self._open():
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
        base = self.base
        storage.sweep(self.folder)
        storage.sweep(self.folder / "checkpoints")
        self.log = RunLog(self.folder, base.device, self.observer)
        self.checkpoints = Checkpoints(self.folder, self.task.identity, self.settings.keep, self.log.warn)
        self.optimizer = self._optimizer()
        self.noise = Neftune(base.model.get_input_embeddings(), self.settings.neftune_alpha)
        base.checkpointing(self.settings.gradient_checkpointing)
        if self.settings.compile:
            base.compile()
        try:
            with base.using(self.adapter.name):
                yield
        finally:
            del self.optimizer  # its states make room for what was parked
            self.noise.remove()
            base.train(False)
            base.checkpointing(False)
            self.log.close()

    def _optimizer(self) -> AdamW:
        s, named = self.settings, dict(self.adapter.named_parameters())
        groups = [{"weight_decay": s.weight_decay, **group} for group in self.adapter.param_groups(s.lr)]
        pages = Pages(int(s.paged_budget_mb * MIB), self.folder)
        reserve = lambda: build(s.optimizer, named, groups, pages, betas=tuple(s.betas), eps=s.eps)
        return storage.retry_while_full(self.folder, 8 * self.adapter.count(), reserve, self.log.warn)

    def _begin(self) -> None:
        """Go on from the newest checkpoint, or from the start after a dry run of the longest batch."""
        restored = self.checkpoints.restore(self.adapter, self.optimizer)
        self.progress = restored or Progress()
        states = self.optimizer.states
        plan = {"steps": self.total, "steps_per_epoch": self.feed.steps_per_epoch, "done": self.progress.step}
        sizes = {
            "trained": self.adapter.count(),
            "optimizer_bytes": states.resident_bytes + states.paged_bytes,
        }
        self.observer.start(plan | sizes)
        if restored:
            self.log.resumed(self.progress.step, self.progress.lengths)
            return
        self.checkpoints.check_space(
            self.adapter, self.optimizer, math.ceil(self.total / self.settings.save_every)
        )
        self.log.cut({})
        rng.seed(self.settings.seed)
        batch = self.feed.longest()
        self.base.train(True, dropout=self.settings.dropout)
        with advice(self.base, self.adapter, self.settings, [batch]):
            preflight(self.base, self.adapter, self.task.objective, batch)

    def _finished(self) -> Result | None:
        """What the folder says of a run that came to its end."""
        if not (self.folder / "adapter").exists():
            return None
        try:
            record = storage.read_json(self.folder / "finished.json")
            identity = record.pop("identity")
        except (OSError, ValueError, KeyError):
            return None  # not finished, or no longer legible: the last checkpoint knows as much
        same_run(self.folder, identity, self.task.identity)
        self.observer.finished(record)
        return Result(**{**record, "adapter": self.folder / "adapter"})

    # Steps

    def _over(self) -> bool:
        patience = self.settings.patience
        return self.progress.step >= self.total or bool(patience and self.progress.waited >= patience)

    def _advance(self) -> None:
        """One optimizer step and what is due after it."""
        p, s = self.progress, self.settings
        batches = self.feed.step(*divmod(p.step, self.feed.steps_per_epoch))
        rate = factor(s.schedule, p.step, self.total, s.warmup)
        self.base.train(True, dropout=s.dropout)
        with advice(self.base, self.adapter, s, batches):
            measured = measure(self.base, self.adapter, self.task.objective, batches, self.noise.arm)
            p.step += 1
            p.tokens += measured.tokens
            if measured.trouble:
                self._skip(measured, s.lr * rate)
            else:
                self._apply(measured, rate)
        self.log.step(self._record(measured, s.lr * rate), measured.tokens)
        improved = self._evaluate() if self._due(s.eval_every or self.feed.steps_per_epoch) else False
        if self._due(s.save_every) or (improved and s.patience) or self._over():
            self._save()

    def _due(self, every: int) -> bool:
        return self.progress.step % every == 0 or self.progress.step == self.total

    def _apply(self, measured: Measured, rate: float) -> None:
        clip, parameters = self.settings.clip, self.adapter.parameters()
        if clip and measured.norm > clip:
            for p in parameters:
                if p.grad is not None:
                    p.grad.mul_(clip / (measured.norm + 1e-6))
        self.optimizer.step(rate)
        self.adapter.after_step(self.progress.step, self.total)  # it may look at the gradients
        for p in parameters:
            p.grad = None
        self.progress.skipped, self.progress.loss = 0, measured.loss

    def _skip(self, measured: Measured, lr: float) -> None:
        """Leave a step that is not finite unapplied, or stop."""
        self.progress.skipped += 1
        error = stop(self.progress.step, measured, lr, self.base)
        if self.settings.on_nan == "stop" or self.progress.skipped > SKIPS:
            raise error
        self.log.warn(f"{error.given}: skipped ({self.progress.skipped} in a row)")

    def _record(self, measured: Measured, lr: float) -> dict[str, Any]:
        """The step's line in metrics.jsonl: nothing in it depends on the machine's speed."""
        record: dict[str, Any] = self._position() | {"lr": lr, "tokens": self.progress.tokens}
        if measured.trouble:
            return record | {"skipped": measured.trouble}
        if "correct" in measured.metrics:
            record["accuracy"] = measured.metrics["correct"] / measured.tokens
        return record | {"loss": measured.loss, "grad_norm": measured.norm}

    def _position(self) -> dict[str, Any]:
        return {"step": self.progress.step, "epoch": round(self.progress.step / self.feed.steps_per_epoch, 4)}

    # Beside the steps

    def _evaluate(self) -> bool:
        """Evaluate and sample without touching the run's random draws; whether this was the best step so far."""
        improved = False
        self.base.train(False)
        with rng.preserved(), torch.no_grad():
            if self.task.evaluate:
                found = self.task.evaluate(self.progress.step)
                self.log.evaluated(self._position() | {f"eval_{key}": value for key, value in found.items()})
                improved = self._judge(found.get("loss"))
            if self.task.sample:
                self.log.sampled(self.progress.step, list(self.task.sample()))
        self.log.pause()
        return improved

    def _judge(self, loss: float | None) -> bool:
        p = self.progress
        if loss is None:
            return False
        improved = p.best is None or loss < p.best["loss"]
        if improved:
            p.best = {"step": p.step, "loss": loss}
        p.waited = 0 if improved else p.waited + 1
        return improved

    def _save(self) -> None:
        """Commit a checkpoint of sound tensors."""
        self._refuse_unsound(self.adapter.checkpoint_state())
        self.progress.lengths = self.log.settle()
        self.observer.saved(self.checkpoints.save(self.progress, self.adapter, self.optimizer))
        self.log.pause()

    def _refuse_unsound(self, tensors: dict[str, torch.Tensor]) -> None:
        if bad := unsound(tensors):
            raise TrainingError(
                f"step {self.progress.step}: {', '.join(bad[:8])} hold a NaN or an infinity",
                "finite adapter tensors; nothing was saved over the last checkpoint",
                "lower train.lr or train.clip and start a new run, or go on from the last checkpoint",
            )

    def _finish(self) -> Result:
        """Save the adapter (the best one where early stopping chose), read it again, and mark the run as finished."""
        p, target = self.progress, self.folder / "adapter"
        if self.settings.patience and p.best:
            self.adapter.restore_checkpoint_state(self.checkpoints.adapter(p.best["step"]))
        state = self.adapter.file_state()
        self._refuse_unsound(state)
        needed = sum(t.numel() * t.element_size() for t in state.values())
        storage.retry_while_full(
            self.folder, needed, lambda: storage.commit(target, self.adapter.save), self.log.warn
        )
        storage.validate(target)
        record = {"steps": p.step, "loss": p.loss, "tokens": p.tokens, "best": p.best, "adapter": "adapter"}
        storage.replace(
            self.folder / "finished.json", storage.encode({**record, "identity": dict(self.task.identity)})
        )
        self.observer.saved(target)
        self.observer.finished(record)
        return Result(**{**record, "adapter": target})
