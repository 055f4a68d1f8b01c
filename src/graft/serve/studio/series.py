"""The numbers of a run over its steps: read as they are written, and thinned for a view.

Of each file only what is new is read. metrics.jsonl is cut back where a run resumes, and then repeats steps:
it is read again from its beginning when timing.jsonl, which only grows, says so, or when it is shorter or
other than it was. Whoever has read numbers knows by `generation` that these no longer hold.
"""

import bisect
import json
import os
import threading
from array import array
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from graft.runs.report.curves import is_number, short

MOST = 2_000  # points of a curve in a view
TREND = 0.06  # weight of a new value in the running mean: it looks back about 16 steps, as 1 / TREND
TRENDS = ("loss", "reward", "policy_loss")
MEAN = "_mean"  # behind the name of a running mean
AXES = ("step", "tokens", "seconds")
SEEN = 64  # bytes before the end of what was read, by which a file is known again
OPEN = 8  # runs whose numbers are kept
Floats = npt.NDArray[np.float64]


class _Growing:
    """A file of JSON Lines that grows, of which only new lines are read."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset, self._seen = path, 0, b""

    def rewind(self) -> None:
        self._offset, self._seen = 0, b""

    def changed(self) -> bool:
        """Return whether what was read no longer stands there."""
        try:
            with open(self._path, "rb") as file:
                file.seek(self._offset - len(self._seen))
                return file.read(len(self._seen)) != self._seen
        except OSError:
            return self._offset > 0

    def new(self) -> Iterator[dict[str, Any]]:
        """Yield the objects in lines that were not yet read; a line without an end waits for it."""
        try:
            with open(self._path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size <= self._offset:
                    return
                file.seek(self._offset)
                text = file.read(size - self._offset)
        except OSError:
            return
        text = text[: text.rfind(b"\n") + 1]
        self._offset += len(text)
        self._seen = (self._seen + text[-SEEN:])[-SEEN:]
        for line in text.splitlines():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(record, dict):
                yield record


class _Points:
    """Values over steps, of which the later one counts where a step is repeated."""

    def __init__(self) -> None:
        self.x, self.y = array("d"), array("d")

    def add(self, step: float, value: float) -> None:
        if self.x and step <= self.x[-1]:
            self.cut(step)
        self.x.append(step)
        self.y.append(value)

    def cut(self, step: float) -> None:
        """Remove what stands at a step and after it."""
        place = bisect.bisect_left(self.x, step)
        del self.x[place:]
        del self.y[place:]


class Series:
    """The numbers of one run.  generation: changes when earlier numbers no longer hold."""

    def __init__(self, folder: Path) -> None:
        self.generation = 1
        self._metrics, self._timing = _Growing(folder / "metrics.jsonl"), _Growing(folder / "timing.jsonl")
        self._numbers: dict[str, _Points] = {}
        self._times: dict[str, _Points] = {}
        self._told: list[dict[str, Any]] = []
        self._lock = threading.Lock()

    def read(self) -> None:
        """Read what was written since the last call."""
        with self._lock:
            again = self._metrics.changed()
            if self._timing.changed():
                self._timing.rewind()
                self._times, self._told, again = {}, [], True
            for record in self._timing.new():
                again |= "resumed" in record and bool(self._numbers)
                self._take(self._times, record)
                if "seconds" not in record:
                    self._told.append(record)
            if again:
                self._metrics.rewind()
                self._numbers = {}
                self.generation += 1
            for record in self._metrics.new():
                self._take(self._numbers, record)

    def _take(self, into: dict[str, _Points], record: dict[str, Any]) -> None:
        if is_number(resumed := record.get("resumed")):
            for points in into.values():
                points.cut(resumed + 1)
        if not is_number(step := record.get("step")):
            return
        for name, value in record.items():
            if name in ("step", "epoch") or not is_number(value):
                continue
            into.setdefault(name, _Points()).add(step, value)
            if name in TRENDS:
                trend = into.setdefault(name + MEAN, _Points())
                trend.cut(step)
                last = trend.y[-1] if trend.y else value
                weight = max(TREND, 1 / (len(trend.y) + 1))  # the first steps have their plain mean
                trend.add(step, last + weight * (value - last))

    @property
    def told(self) -> list[dict[str, Any]]:
        """What timing.jsonl says beside times: starts, ends, resumed steps, warnings; in their order."""
        with self._lock:
            return list(self._told)

    def step(self) -> int | None:
        """Return the last step with numbers; None before the first."""
        with self._lock:
            ends = [points.x[-1] for points in self._numbers.values() if points.x]
        return int(max(ends)) if ends else None

    def names(self) -> list[str]:
        """Return the names of all numbers, as they came."""
        with self._lock:
            return [*self._numbers, *self._times]

    def seconds(self) -> tuple[float, float | None]:
        """Return the seconds of all steps, and how many a step took lately: the median of the last 50."""
        with self._lock:
            taken = _copied(self._times, "seconds")[1]
        return float(taken.sum()), float(np.median(taken[-50:])) if len(taken) else None

    def view(
        self,
        axis: str = "step",
        low: float | None = None,
        high: float | None = None,
        since: float | None = None,
        most: int = MOST,
        only: str | None = None,
    ) -> dict[str, list[list[float]]]:
        """Return {name: [places, values]} of every number that has some.

        axis: step, tokens or seconds since the start, of the places.  low, high: ends of the view on it.
        since: a step after which they stand.  most: values of each, at least 8; lowest and highest of every
        part stay.  only: the one name.
        """
        with self._lock:
            names = [only] if only is not None else [*self._numbers, *self._times]
            found = {name: _copied(self._numbers | self._times, name) for name in names}
            along = None if axis == "step" else self._along(axis)
        views = {}
        for name, (x, y) in found.items():
            kept = x > since if since is not None else np.ones(len(x), bool)
            places = x if along is None else np.interp(x, *along) if len(along[0]) else x[:0]
            kept = kept[: len(places)]
            if low is not None:
                kept &= places >= low
            if high is not None:
                kept &= places <= high
            places, values = thinned(places[kept], y[: len(kept)][kept], most)
            if len(places):
                views[name] = [short(places.tolist()) if along else places.tolist(), short(values.tolist())]
        return views

    def _along(self, axis: str) -> tuple[Floats, Floats]:
        """Return steps, and how many tokens or seconds there were until each."""
        steps, seconds = _copied(self._times, "seconds")
        if axis == "seconds":
            return steps, np.cumsum(seconds)
        speeds, speed = _copied(self._times, "tokens_per_s")
        return steps, np.cumsum(seconds * np.interp(steps, speeds, speed)) if len(speeds) else steps


def thinned(x: Floats, y: Floats, most: int) -> tuple[Floats, Floats]:
    """Return at most so many points: the first, the last, and the lowest and highest of each part."""
    if len(x) <= most:
        return x, y
    size = -(-len(x) // (most // 2 - 2))
    whole = len(x) // size * size
    starts = np.arange(0, whole, size)
    parts = y[:whole].reshape(-1, size)
    kept = [[0, len(x) - 1], starts + parts.argmin(1), starts + parts.argmax(1)]
    if whole < len(x):
        kept.append([whole + y[whole:].argmin(), whole + y[whole:].argmax()])
    places = np.unique(np.concatenate(kept))
    return x[places], y[places]


def _copied(points: dict[str, _Points], name: str) -> tuple[Floats, Floats]:
    """Return copies: an array that is looked into cannot grow."""
    found = points.get(name) or _Points()
    return np.array(found.x, dtype=float), np.array(found.y, dtype=float)


class Opened:
    """The numbers of the runs that were asked for last."""

    def __init__(self) -> None:
        self._series: OrderedDict[Path, Series] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, folder: Path) -> Series:
        """Return the numbers of a run's folder, as far as they are written."""
        with self._lock:
            series = self._series.pop(folder, None) or Series(folder)
            self._series[folder] = series
            while len(self._series) > OPEN:
                self._series.popitem(last=False)
        series.read()
        return series
