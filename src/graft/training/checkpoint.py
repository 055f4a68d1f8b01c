"""Checkpoints of a run: all state that a resumed run needs to equal an undisturbed one, bit for bit.

    checkpoints/step-000100/   adapter.safetensors    trained tensors and buffers
                               optimizer.safetensors  moments, codes, master copies, step counters
                               rng.safetensors        torch's generators
                               state.json             progress, other generators, lengths of the logs
                               manifest.json          sizes, SHA-256, identity of the run, versions

The order of rows and the learning rate are pure functions of the step, so nothing else needs to be stored.
"""

import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import torch
from safetensors.torch import load_file

import graft
from graft import storage
from graft.errors import CheckpointError, SpaceError
from graft.training import rng
from graft.training.optimizers import AdamW

if TYPE_CHECKING:
    from graft.training.together import Trained


@dataclass
class Progress:
    """How far a run has come.

    best: {"step", "loss"} of the best evaluation.  waited: evaluations since then.  lengths: of the logs, in
    bytes.  feed: what the source of batches has to remember.  due: what has still to be done after the step.
    ended: an observer has asked to stop after the step.
    """

    step: int = 0
    tokens: int = 0
    loss: float | None = None  # of the last step that was applied
    skipped: int = 0  # steps in a row that were not finite
    best: dict[str, Any] | None = None
    waited: int = 0
    lengths: dict[str, int] = field(default_factory=dict)
    feed: dict[str, Any] = field(default_factory=dict)
    due: list[str] = field(default_factory=list)
    ended: bool = False


class Checkpoints:
    """The checkpoints of one run.

    identity: JSON values that must be equal at every start of the run.
    keep: how many of the newest are kept.  warn: called with a sentence when something did not stop the run.
    """

    def __init__(
        self, run_folder: Path, identity: Mapping[str, Any], keep: int, warn: Callable[[str], None]
    ) -> None:
        self.folder = run_folder / "checkpoints"
        self.identity = dict(identity)
        self.keep = keep
        self.warn = warn

    def check_space(self, adapter: "Trained", optimizer: AdamW, count: int) -> None:
        """Raise SpaceError, before the first step, if the disk has no room for the run's checkpoints.

        count: checkpoints that the run will write; at one time it holds the kept ones and the newest.
        """
        each = _bytes(_parts(adapter, optimizer))
        most = min(count, self.keep + 1)
        free = storage.free_bytes(self.folder)
        if free < most * each:
            raise SpaceError(
                f"{self.folder} has {free:,} bytes free; the run needs {most} checkpoints of {each:,} bytes",
                f"room for {most * each:,} bytes",
                "make room, choose another output, or lower train.keep",
            )

    def save(self, progress: Progress, adapter: "Trained", optimizer: AdamW) -> Path:
        """Commit a checkpoint, validate it, remove those no longer kept, and return its folder."""
        parts = _parts(adapter, optimizer)
        state = storage.encode({"progress": asdict(progress), "rng": rng.values()})
        needed = len(state) + _bytes(parts)
        target = self.folder / f"step-{progress.step:06d}"
        if target.exists():  # the same step: damaged checkpoints were renamed when the run was resumed
            return target

        def fill(folder: Path) -> None:
            for name, tensors in parts.items():
                storage.write_tensors(folder / f"{name}.safetensors", tensors)
            storage.write(folder / "state.json", state)

        facts = {"step": progress.step, "identity": self.identity, "versions": versions()}

        def commit() -> Path:
            return storage.commit(target, fill, facts)

        storage.retry_while_full(self.folder, needed, commit, self.warn)
        storage.validate(target)
        spare = [progress.best["step"]] if progress.best else []
        storage.rotate(self.folder, self.keep, spare, self.warn)
        return target

    def restore(self, adapter: "Trained", optimizer: AdamW) -> Progress | None:
        """Load the newest valid checkpoint into adapter and optimizer; return None if there is none.

        Damaged ones are renamed, with a warning. Raises CheckpointError if the checkpoint belongs to another
        run.
        """
        checkpoint, damaged = storage.latest(self.folder)
        if checkpoint is not None:
            self._check(checkpoint)
        for broken, error in damaged:
            renamed = storage.quarantine(broken)
            origin = checkpoint.name if checkpoint else "the start"
            self.warn(f"{error.given}: kept as {renamed.name}, continuing from {origin}")
        if checkpoint is None:
            return None
        adapter.restore_checkpoint_state(load_file(checkpoint / "adapter.safetensors"))
        optimizer.load(load_file(checkpoint / "optimizer.safetensors"))
        state = storage.read_json(checkpoint / "state.json")
        rng.restore(load_file(checkpoint / "rng.safetensors"), state["rng"])
        return Progress(**state["progress"])

    def oldest(self) -> int:
        """Return the step of the oldest checkpoint that is kept; 0 if there is none."""
        return min((step for step, _ in storage.steps(self.folder)), default=0)

    def adapter(self, step: int) -> dict[str, torch.Tensor]:
        """Return the adapter's tensors at a step whose checkpoint is kept.

        Raises CheckpointError if it is damaged.
        """
        checkpoint = self.folder / f"step-{step:06d}"
        storage.validate(checkpoint)
        return load_file(checkpoint / "adapter.safetensors")

    def _check(self, checkpoint: Path) -> None:
        """Raise CheckpointError for another run's checkpoint; warn about other versions of libraries."""
        facts = storage.validate(checkpoint)
        same_run(checkpoint, facts["identity"], self.identity)
        if changed := storage.changes(facts["versions"], versions()):
            self.warn(f"resumed with other versions ({changed}): results may differ in the last bits")


def _parts(adapter: "Trained", optimizer: AdamW) -> dict[str, dict[str, torch.Tensor]]:
    """Return the tensors of a checkpoint by file."""
    return {"adapter": adapter.checkpoint_state(), "optimizer": optimizer.tensors(), "rng": rng.tensors()}


def _bytes(parts: Mapping[str, Mapping[str, torch.Tensor]]) -> int:
    return sum(t.numel() * t.element_size() for part in parts.values() for t in part.values())


def same_run(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise CheckpointError, naming every key that differs, unless both identities are those of one run.

    folder: the run's or the checkpoint's, for the message.
    """
    if not storage.is_same_run(before, now):
        raise CheckpointError(
            f"{folder} belongs to a run with {storage.kinds(before, now)} ({storage.changes(before, now)})",
            "the settings, base and data that the run began with",
            "restore them to continue that run; for a new one choose another output, or delete the folder",
        )


def versions() -> dict[str, Any]:
    """Return the versions that can change results in the last bits."""
    return {
        "graft": getattr(graft, "__version__", ""),
        "python": platform.python_version(),
        "safetensors": safetensors.__version__,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
