"""The one training loop: compute a gradient, clip, apply, log, evaluate, save; and continue a stopped run.

A run is a function of its recipe. Its folder holds what it has done, and the same call continues from there,
or returns at once if nothing is left to do. After step n the order of rows, the learning rate and all random
draws are the same, whether or not the process was killed on the way.

A signal is obeyed at once: the step that was begun is thrown away, the one before it is saved. What was due
after that one, such as an evaluation that was not at its end, is made when the run goes on.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from graft import storage
from graft.errors import CheckpointError, TrainingError, notice
from graft.quant.finite import require_finite
from graft.sizes import MIB
from graft.storage.signals import Interrupted, Stop, check, held, obeyed
from graft.training import rng
from graft.training.checkpoint import Checkpoints, Progress, same_run
from graft.training.log import RunLog
from graft.training.memory import advice
from graft.training.neftune import Neftune
from graft.training.observer import Observer, asks_to_stop
from graft.training.optimizers import AdamW, build
from graft.training.paging import Pages
from graft.training.parking import parked
from graft.training.passed import passed
from graft.training.schedule import factor
from graft.training.step import Measured, clear_gradients, measure, not_finite_error, preflight
from graft.training.task import Result, Task
from graft.training.together import Together, Trained
from graft.training.trend import worsened

if TYPE_CHECKING:
    from graft.base.base import Base

MOST_SKIPS = 3  # steps in a row that on_nan=skip passes over
EVALUATION, SAMPLES = "evaluation", "samples"  # what may be due after a step


class Trainer:
    """Trains one adapter of a base.

    name: of the adapter.  settings: the recipe's `train:` section.  folder: the run's, for all files.
    lock: of the folder, where the caller holds it.
    """

    def __init__(
        self,
        base: "Base",
        name: str,
        task: Task,
        settings: Any,
        folder: str | Path,
        observer: Observer | None = None,
        lock: storage.Lock | None = None,
    ) -> None:
        self.base = base
        beside = {folder: base.adapters[other] for folder, other in task.beside.items()}
        self.adapter: Trained = Together(base.adapters[name], beside) if beside else base.adapters[name]
        self.task = task
        self.feed = task.feed
        self.settings = settings
        self.folder = Path(folder)
        self.lock = lock
        self.observer = observer or Observer()
        self.total = settings.max_steps or math.ceil(settings.epochs * task.feed.steps_per_epoch)
        self.progress = Progress()
        self.saved = 0  # the step of the newest checkpoint

    def run(self) -> Result:
        """Train to the last step, from the start or from the newest checkpoint in the folder.

        Raises Interrupted after SIGTERM or SIGINT, TrainingError for a step that is not finite or does not
        fit in memory, SpaceError if the disk is full, CheckpointError if the folder belongs to another run or
        is in use.
        """
        with storage.locked(self.folder, self.lock), obeyed():
            storage.sweep(self.folder)
            storage.sweep(self.folder / "checkpoints")
            finished = self._finished()
            if finished is not None:
                return finished
            with parked(self.adapter, self.folder), self._open():
                try:
                    self._begin()
                    while self.progress.due or not self._over():
                        check()
                        self._advance()
                    return self._finish()
                except Stop as stop:
                    raise self._stopped(stop.number) from None

    def _stopped(self, number: int) -> Interrupted:
        """Save the last step that was done, if it is not saved; return the error that tells of it."""
        step = self.progress.step
        if not step:
            return Interrupted(number, "no step was taken yet")
        clear_gradients(self.adapter)
        if self.saved < step:
            self._save()
        remedy = f"run the same command again: it continues from step {step}"
        return Interrupted(number, f"step {step} is saved", remedy)

    # Start

    @contextlib.contextmanager
    def _open(self) -> Iterator[None]:
        """Open the run's files, build the optimizer and set the base's switches; undo it after the block."""
        base = self.base
        self.log = RunLog(self.folder, base.device, self.observer)
        self.checkpoints = Checkpoints(self.folder, self.task.identity, self.settings.keep, self.log.warn)
        self.optimizer = self._optimizer()
        alpha = self.settings.neftune_alpha if self.task.noise else 0.0
        self.noise = Neftune(base.model.get_input_embeddings(), alpha)
        try:
            base.checkpointing(self.settings.gradient_checkpointing is True)  # auto is settled before
            if self.settings.compile:
                base.compile()
            with base.using(self.adapter.name):
                yield
        finally:
            del self.optimizer  # its states make room for what was parked
            self.noise.remove()
            base.train(False)
            base.checkpointing(False)
            self.log.close()

    def _optimizer(self) -> AdamW:
        """Build the optimizer; its pages reserve room on the disk."""
        s = self.settings
        named = dict(self.adapter.named_parameters())
        groups = [{"weight_decay": s.weight_decay, **group} for group in self.adapter.param_groups(s.lr)]
        pages = Pages(int(s.paged_budget_mb * MIB), self.folder)

        def reserve() -> AdamW:
            return build(s.optimizer, named, groups, pages, betas=tuple(s.betas), eps=s.eps)

        return storage.retry_while_full(self.folder, 8 * self.adapter.count(), reserve, self.log.warn)

    def _begin(self) -> None:
        """Continue from the newest checkpoint; if there is none, try the longest batch and begin."""
        restored = self.checkpoints.restore(self.adapter, self.optimizer)
        self.progress = restored or Progress()
        self.saved = self.progress.step
        self.feed.restore(self.progress.feed)
        states = self.optimizer.states
        self.observer.start(
            {
                "steps": self.total,
                "steps_per_epoch": self.feed.steps_per_epoch,
                "done": self.progress.step,
                "trained": self.adapter.count(),
                "optimizer_bytes": states.resident_bytes + states.paged_bytes,
            }
        )
        if restored:
            self.log.resumed(self.progress.step, self.progress.lengths)
            return
        saves = math.ceil(self.total / self.settings.save_every)
        self.checkpoints.check_space(self.adapter, self.optimizer, saves)
        self.log.cut({})  # without a checkpoint nothing that an earlier start wrote is valid
        rng.seed(self.settings.seed)
        batch = self.feed.longest()
        self._train()
        with advice(self.base, self.adapter, self.settings, [batch]):
            (batch,) = self.task.before_step(self.base, [batch])
            preflight(self.base, self.adapter, self.task.objective, batch)

    def _finished(self) -> Result | None:
        """Return the result that the folder records, or None if the run has not ended."""
        if not (self.folder / "adapter").exists():
            return None
        try:
            record = storage.read_record(self.folder / "finished.json")
        except CheckpointError as error:  # the last checkpoint holds the same
            notice(f"{error.given}: the run goes on from its newest checkpoint, and writes it again")
            return None
        if record is None:
            return None
        same_run(self.folder, record.pop("identity"), self.task.identity)
        if not self._kept():
            return None
        self.observer.finished(record)
        return Result(**{**record, "adapter": self.folder / "adapter"})

    def _kept(self) -> bool:
        """Return whether the adapter is as it was written; False if the last checkpoint holds it whole.

        Raises CheckpointError if the adapter was changed, and no checkpoint is left.
        """
        try:
            storage.require_unchanged(self.folder / "adapter", CheckpointError)
        except CheckpointError as error:
            if not storage.steps(self.folder / "checkpoints"):
                raise
            notice(f"{error.given}: the adapter is written again from the last checkpoint")
            return False
        return True

    # Steps

    def _over(self) -> bool:
        """Return whether the last step is done, an observer ended the run, or patience is at its end."""
        p, patience = self.progress, self.settings.patience
        return p.step >= self.total or p.ended or bool(patience and p.waited >= patience)

    def _advance(self) -> None:
        """Take a step, unless something is due after the last one; then do what is due, and save."""
        p, s = self.progress, self.settings
        if not p.due:
            self._step()
        improved = self._evaluate() if p.due else False
        p.ended = p.ended or asks_to_stop(self.observer)
        if self._due(s.save_every) or (improved and s.patience) or self._over():
            self._save()

    def _step(self) -> None:
        """Take one optimizer step and log it; one that does not come to its end leaves no trace."""
        p, s = self.progress, self.settings
        scale = factor(s.schedule, p.step, self.total, s.warmup)
        with rng.undone():
            batches: Sequence[Any] = self.feed.step(*divmod(p.step, self.feed.steps_per_epoch))
            rollout, timing = self.feed.record(p.step), self.feed.timing(p.step)
            if batches:
                self._train()
                with advice(self.base, self.adapter, s, batches):
                    batches = self.task.before_step(self.base, batches)
                    measured = measure(self.base, self.adapter, self.task.objective, batches, self.noise.arm)
        with held():
            if batches:
                with advice(self.base, self.adapter, s, batches):
                    record = self._take(measured, scale, rollout)
            else:
                p.step += 1
                record = {"tokens": p.tokens, "left_out": self.feed.why_none} | rollout
            self.log.step(self._position() | record, passed(batches), timing)
            p.ended = asks_to_stop(self.observer)
            if self._due(s.eval_every or self.feed.steps_per_epoch):
                p.due = [EVALUATION] * (self.task.evaluate is not None)
                p.due += [SAMPLES] * (self.task.sample is not None)

    def _take(self, measured: Measured, scale: float, rollout: Mapping[str, float]) -> dict[str, Any]:
        """Apply a step that was measured; return what its line in the log says of it.

        scale: factor of every group's learning rate.  rollout: what the line says of new answers.
        """
        p, lr = self.progress, self.settings.lr * scale
        told = {} if measured.trouble else dict(self.task.progress(measured.metrics))
        self.feed.check(p.step, told)
        p.step += 1
        p.tokens += measured.tokens
        record = {"lr": lr, "tokens": p.tokens} | dict(rollout)
        if measured.trouble:
            self._skip(measured, lr)
            return record | {"skipped": measured.trouble}
        self._apply(measured, scale)
        return record | told | {"loss": measured.loss, "grad_norm": measured.norm}

    def _train(self) -> None:
        """Switch the base to training, with the dropout that the run has."""
        noise = self.task.noise
        self.base.train(True, dropout=self.settings.dropout and noise, noise=noise)

    def _due(self, every: int) -> bool:
        """Return whether something done every so many steps, and at the end, is due after this step."""
        p = self.progress
        return p.step % every == 0 or p.step == self.total or p.ended

    def _apply(self, measured: Measured, scale: float) -> None:
        """Clip the gradient and update the adapter.  scale: factor of every group's learning rate."""
        limit = self.settings.clip
        clip = limit / (measured.norm + 1e-6) if limit and measured.norm > limit else 1.0
        self.optimizer.step(scale, clip)
        self.adapter.after_step(self.progress.step, self.total)  # methods may read the gradients here
        clear_gradients(self.adapter)
        self.progress.skipped = 0
        self.progress.loss = measured.loss

    def _skip(self, measured: Measured, lr: float) -> None:
        """Pass over a step that is not finite; raise TrainingError if the settings forbid it."""
        self.progress.skipped += 1
        error = not_finite_error(self.progress.step, measured, lr, self.base)
        if self.settings.on_nan == "stop" or self.progress.skipped > MOST_SKIPS:
            raise error
        self.log.warn(f"{error.given}: skipped ({self.progress.skipped} in a row)")

    def _position(self) -> dict[str, Any]:
        return {"step": self.progress.step, "epoch": round(self.progress.step / self.feed.steps_per_epoch, 4)}

    # Between the steps

    def _evaluate(self) -> bool:
        """Evaluate and sample, as far as it is due; return whether this step is the best so far.

        The run's random draws are not changed.
        """
        p, improved = self.progress, False
        self.base.train(False)
        if EVALUATION in p.due and self.task.evaluate:
            with rng.preserved(), torch.no_grad():
                scores = self.task.evaluate(p.step)
            with held():
                p.due.remove(EVALUATION)
                self.log.evaluated(self._position() | {f"eval_{key}": value for key, value in scores.items()})
                improved = self._judge(scores.get("loss"))
        if SAMPLES in p.due and self.task.sample:
            with rng.preserved(), torch.no_grad():  # its draws are the same where no evaluation came before
                texts = list(self.task.sample())
            with held():
                p.due.remove(SAMPLES)
                self.log.sampled(p.step, texts)
        p.due = []
        self.log.pause()
        return improved

    def _judge(self, loss: float | None) -> bool:
        """Remember the best evaluation and how many followed it; return whether this is the best."""
        p = self.progress
        if loss is None:
            return False
        improved = p.best is None or loss < p.best["loss"]
        if improved:
            p.best = {"step": p.step, "loss": loss}
        p.waited = 0 if improved else p.waited + 1
        return improved

    def _save(self) -> None:
        """Commit a checkpoint; raise TrainingError if the adapter is not finite."""
        self._require_finite(self.adapter.checkpoint_state())
        with held():
            self.progress.lengths = self.log.settle()
            self.progress.feed = self.feed.state()
            self.observer.saved(self.checkpoints.save(self.progress, self.adapter, self.optimizer))
            self.saved = self.progress.step
        self.feed.forget(self.checkpoints.oldest())
        self.log.pause()

    def _require_finite(self, tensors: dict[str, torch.Tensor]) -> None:
        remedy = "continue from the last checkpoint, which is untouched, or begin anew with a lower train.lr"
        require_finite(tensors.items(), TrainingError, remedy, where=f"step {self.progress.step}")

    def _finish(self) -> Result:
        """Save the adapter (the best one after early stopping), validate it, and mark the run as finished."""
        p = self.progress
        if self.settings.patience and p.best:
            self.adapter.restore_checkpoint_state(self.checkpoints.adapter(p.best["step"]))
        target = self.folder / "adapter"
        others = self.adapter.others if isinstance(self.adapter, Together) else {}
        for name, adapter in others.items():
            self._keep(self.folder / name, adapter)
        self._keep(target, self.adapter)
        result = Result(p.step, p.loss, p.tokens, p.best, target)
        record = {**asdict(result), "adapter": target.name}
        # Keys are sorted, so that a resumed run writes the bytes of an undisturbed one.
        facts = {**record, "identity": dict(self.task.identity)}
        storage.write_record(self.folder / "finished.json", facts, sort=True)
        if rise := worsened(self.folder / "metrics.jsonl"):
            self.log.warn(rise)
        self.observer.saved(target)
        self.observer.finished(record)
        return result

    def _keep(self, target: Path, adapter: Trained) -> None:
        """Commit the files of an adapter, and validate them. Raises TrainingError if it is not finite."""
        state = adapter.file_state()
        self._require_finite(state)
        needed = sum(t.numel() * t.element_size() for t in state.values())
        storage.retry_while_full(
            self.folder, needed, lambda: storage.commit(target, adapter.save), self.log.warn
        )
        storage.validate(target)
