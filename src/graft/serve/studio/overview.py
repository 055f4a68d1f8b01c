"""What the list of runs says of each: read again only where its files have changed.

A run is known by its folder below the home: `lora`, and `sweep~lr-1` for `sweep/lr-1`. Names of requests are
looked up among those that were found; none is joined to a path.
"""

import json
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from graft.runs.records import RunRecord, read_run, runs_below
from graft.runs.report.curves import is_number
from graft.runs.report.words import base_words, methods_words, private
from graft.runs.result import SCORES
from graft.runs.table import LOWER
from graft.serve.failures import ApiError
from graft.serve.studio.processes import Job, job_of, jobs
from graft.storage.lock import holder

POINTS = 60  # of the small curve beside a run
WHOLE = 1 << 16  # bytes up to which a file of metrics is read for it as a whole
PATIENCE_S = 1.0  # for which one call reads folders that were never read
PART = 512  # bytes that are read around each point of a longer one
WATCHED = (
    "recipe.yaml",
    "identity.json",
    "finished.json",
    "metrics.jsonl",
    "timing.jsonl",
    SCORES,
    "adapter",
)


class Runs:
    """The runs of one home."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._known: dict[Path, tuple[Any, dict[str, Any]]] = {}
        self._lock = threading.Lock()

    def folders(self) -> dict[str, Path]:
        """Return the folder of every run by its name."""
        if not self.home.is_dir():
            return {}
        return {_name(self.home, folder): folder for folder in runs_below(self.home)}

    def folder(self, name: str) -> Path:
        """Return the folder of a run. Raises ApiError if there is no run of that name."""
        found = self.folders()
        if name not in found:
            raise ApiError(404, f"there is no run {name[:80]!r} in this folder", param="name")
        return found[name]

    def started_as(self, name: str) -> str:
        """Return the name under which a run was started here: its own, or that of the stages it is one of."""
        return name if job_of(self.home, name) is not None else name.partition("~")[0]

    def job(self, name: str) -> Job | None:
        """Return the process that was last started here for a run."""
        return job_of(self.home, self.started_as(name))

    def all(self) -> tuple[list[dict[str, Any]], int]:
        """Return what the list says of the runs, the newest first, also of those that only begin.

        And how many are still to be read: the next calls read them.
        """
        until = time.monotonic() + PATIENCE_S
        listed, fresh, unread = [], 0, 0
        with self._lock:
            folders = self.folders()
            for gone in self._known.keys() - set(folders.values()):
                del self._known[gone]
            for name, folder in sorted(folders.items(), key=lambda item: -_changed(item[1])):
                new = folder not in self._known
                if not new or not fresh or time.monotonic() < until:
                    listed.append(self._one(name, folder))
                    fresh += new
                else:
                    unread += 1
        begun = {*folders, *(name.partition("~")[0] for name in folders)}
        listed += [_not_yet(name, job) for name, job in jobs(self.home).items() if name not in begun]
        return sorted(listed, key=lambda run: -run["changed"]), unread

    def one(self, name: str) -> dict[str, Any]:
        """Return what the list says of one run. Raises ApiError if there is none of that name."""
        folders = self.folders()
        if name in folders:
            with self._lock:
                return self._one(name, folders[name])
        known = jobs(self.home)
        if name in known and not any(run.startswith(f"{name}~") for run in folders):
            return _not_yet(name, known[name])
        raise ApiError(404, f"there is no run {name[:80]!r} in this folder", param="name")

    def _one(self, name: str, folder: Path) -> dict[str, Any]:
        held = holder(folder)
        stamps = (held, *(_stamp(folder / file) for file in WATCHED))
        known = self._known.get(folder)
        if known is None or known[0] != stamps:
            known = self._known[folder] = (stamps, _facts(name, read_run(folder)))
        facts = known[1]
        if facts["state"] == "stopped" and (job := self.job(name)) is not None and job.lives:
            return facts | {"state": "starting"}
        return facts


def sparkline(path: Path) -> list[float]:
    """Return the losses of a file of metrics, at most POINTS of them, evenly spread over its bytes."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size <= WHOLE:
                found = _losses(file.read().splitlines())
                places = [i * (len(found) - 1) // (POINTS - 1) for i in range(POINTS)]
                return [found[i] for i in places] if len(found) > POINTS else found
            losses = []
            for point in range(POINTS):
                file.seek((size - PART) * point // (POINTS - 1))
                losses += _losses(file.read(PART).splitlines()[1:])[:1]
            return losses
    except OSError:
        return []


def _losses(lines: Sequence[bytes]) -> list[float]:
    """Return the losses in lines, of which some may be cut or damaged."""
    found = []
    for line in lines:
        try:
            loss = json.loads(line).get("loss")
        except (ValueError, RecursionError, AttributeError):
            continue
        if is_number(loss):
            found.append(float(f"{loss:.5g}"))
    return found


def _facts(name: str, record: RunRecord) -> dict[str, Any]:
    recipe, main = record.recipe, record.main
    score = None
    if main is not None:
        score = {
            "metric": main,
            "before": _number(record.before.get(main)),
            "after": _number(record.after.get(main)),
            "lower": main in LOWER,
        }
    return {
        "name": name,
        "state": record.state,
        "model": "" if recipe is None else base_words(recipe),
        "method": "" if recipe is None else methods_words(recipe),
        "stage": "" if recipe is None else recipe.stage_name,
        "data": "" if recipe is None else data_words(recipe.data.train),
        "step": record.step,
        "of": record.of,
        "loss": _number(record.loss),
        "curve": sparkline(record.folder / "metrics.jsonl"),
        "score": score,
        "started": _started(record.folder / "timing.jsonl"),
        "changed": record.changed,
        "bytes": record.size_bytes,
        "holder": record.holder,
        "damage": list(record.damage),
    }


def data_words(train: str | list[str] | None) -> str:
    """Return what rows are called in a list."""
    names = [train] if isinstance(train, str) else train or []
    return ", ".join(private(name) for name in names[:2]) + (" …" if len(names) > 2 else "")


def _not_yet(name: str, job: Job) -> dict[str, Any]:
    """Return what the list says of a process that has written no run yet, or that ended without one."""
    empty = dict.fromkeys(("model", "method", "stage", "data"), "")
    none = dict.fromkeys(("step", "of", "loss", "score", "holder"))
    state = "starting" if job.lives else "failed"
    times = {"started": job.started, "changed": job.started, "bytes": 0}
    return {"name": name, "state": state, **empty, **none, "curve": [], **times, "damage": []}


def _number(value: Any) -> float | None:
    return value if is_number(value) else None


def _started(path: Path) -> str | None:
    """Return when a run was first started; None where its folder does not tell."""
    try:
        with open(path, "rb") as file:
            return str(json.loads(file.readline(WHOLE))["start"]["time"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def _name(home: Path, folder: Path) -> str:
    return folder.relative_to(home).as_posix().replace("/", "~") if folder != home else folder.name


def _changed(folder: Path) -> int:
    """Return when a run's folder was last written to; only the order hangs on it."""
    return max((stamp[0] for name in WATCHED if (stamp := _stamp(folder / name)) is not None), default=0)


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size
