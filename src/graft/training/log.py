"""Record what a run does in files, and tell an observer.

`metrics.jsonl` holds what a repeated run gives again: step, loss, learning rate, norms, evaluations.
`timing.jsonl` holds the rest: seconds, speed, memory, warnings. A resumed run cuts the first file back to the
length that its checkpoint recorded, so that it equals an undisturbed run's byte for byte. The second only
grows.
"""

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from graft import storage
from graft.sizes import MIB
from graft.storage.system import memory_now, memory_peak
from graft.training.observer import Observer
from graft.training.passed import Passed


class Journal:
    """A file that only grows, and can be cut back to an earlier length. Errors of the system name it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open(path, "ab")  # noqa: SIM115  kept open for the run

    def add(self, text: str) -> None:
        """Append a text and flush it, so that readers see it at once."""
        with storage.told_as_of(self.path):
            self._file.write(text.encode())
            self._file.flush()

    def record(self, record: dict[str, Any]) -> None:
        """Append one line of JSON."""
        self.add(json.dumps(record, ensure_ascii=False) + "\n")

    def settle(self) -> int:
        """Make everything that was written durable; return the file's length in bytes."""
        with storage.told_as_of(self.path):
            os.fsync(self._file.fileno())
            return os.fstat(self._file.fileno()).st_size

    def cut(self, length: int) -> int:
        """Remove everything after the first `length` bytes; return how many of these are missing.

        Of a file that is shorter, or that does not end with a line there, the whole lines stay: growing it
        would fill it with NUL.
        """
        with storage.told_as_of(self.path):
            kept = self.path.read_bytes()[:length]
            end = kept.rfind(b"\n") + 1
            self._file.truncate(end)
            return length - end

    def close(self) -> None:
        """Close the file."""
        with storage.told_as_of(self.path):
            self._file.close()


class RunLog:
    """Writes the three growing files of a run, and passes every event on to the observer."""

    def __init__(self, folder: Path, device: torch.device, observer: Observer) -> None:
        self.observer = observer
        self._metrics = Journal(folder / "metrics.jsonl")
        self._samples = Journal(folder / "samples.md")
        self._timing = Journal(folder / "timing.jsonl")
        storage.sync(folder)  # after a power cut the files are there, however short
        self._clock = Clock(device)

    def step(self, record: dict[str, Any], through: Passed, more: Mapping[str, float] | None = None) -> None:
        """Record a finished step.

        through: what passed through the model, for the speed.  more: further times.
        """
        timing = {"step": record["step"], **self._clock.lap(through), **(more or {})}
        self._metrics.record(record)
        self._timing.record(timing)
        self.observer.step({**record, **timing})

    def evaluated(self, record: dict[str, Any]) -> None:
        """Record the metrics of an evaluation."""
        self._metrics.record(record)
        self.observer.evaluated(record)

    def sampled(self, step: int, texts: Sequence[str]) -> None:
        """Record the answers to the sample prompts after a step."""
        self._samples.add(f"## step {step}\n\n" + "".join(f"{text}\n\n---\n\n" for text in texts))
        self.observer.sampled(texts)

    def pause(self) -> None:
        """Exclude the time since the last step from the next step's time."""
        self._clock.lap(Passed())

    def resumed(self, step: int, lengths: dict[str, int]) -> None:
        """Cut the files back to the checkpoint of this step (see `cut`), and report it."""
        self.cut(lengths)
        self._timing.record({"resumed": step})
        self.observer.resumed(step)

    def warn(self, text: str) -> None:
        """Record something that did not stop the run."""
        self._timing.record({"warning": text})
        self.observer.warn(text)

    def settle(self) -> dict[str, int]:
        """Make everything durable; return the lengths to cut the files back to when the run resumes."""
        self._timing.settle()
        return {journal.path.name: journal.settle() for journal in (self._metrics, self._samples)}

    def cut(self, lengths: dict[str, int]) -> None:
        """Cut the files that a resumed run repeats back to these lengths; without a length, empty them.

        A file that has lost a part goes on without it, and the run is told.
        """
        for journal in (self._metrics, self._samples):
            length = lengths.get(journal.path.name, 0)
            if missing := journal.cut(length):
                lost = f"{journal.path} has lost {missing:,} of the {length:,} bytes of earlier steps"
                self.warn(f"{lost}: the lines that are left stay, and new ones follow them")

    def close(self) -> None:
        """Close the files."""
        for journal in (self._metrics, self._samples, self._timing):
            journal.close()


def evaluations(folder: Path) -> list[dict[str, float]]:
    """Return the scores of the evaluations that a run's metrics file holds, the oldest first."""
    scores = (
        {key.removeprefix("eval_"): value for key, value in record.items() if key.startswith("eval_")}
        for record in storage.read_lines(folder / "metrics.jsonl")[0]
    )
    return [one for one in scores if one]


class Clock:
    """Measures seconds, speed and memory from one step to the next."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._last = device, time.perf_counter()

    def lap(self, through: Passed) -> dict[str, float]:
        """Return seconds since the last call, tokens and rows a second, memory_mb now and peak_mb so far."""
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        memory, peak = usage(self._device)
        return {
            "seconds": round(seconds, 4),
            "tokens_per_s": round(through.tokens / max(seconds, 1e-9), 1),
            "rows_per_s": round(through.rows / max(seconds, 1e-9), 2),
            "memory_mb": round(memory / MIB, 1),
            "peak_mb": round(peak / MIB, 1),
        }


def usage(device: torch.device) -> tuple[int, int]:
    """Return (bytes in use now, the most so far) by this process, on the GPU or in main memory."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device)
    memory = memory_now()
    return memory, max(memory, memory_peak())  # the system updates the two counters at different times
