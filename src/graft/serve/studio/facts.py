"""What the page of one run says beside its curves: read from the run's folder, with no model and no torch."""

import functools
import json
import shlex
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graft import storage
from graft.data import DataReport
from graft.errors import CheckpointError, GraftError, Notice
from graft.recipe import read
from graft.runs.hear import kept_notes
from graft.runs.records import read_run
from graft.runs.samples import by_step, spread
from graft.serve.studio.overview import Runs
from graft.serve.studio.processes import log_tail, origin_of
from graft.serve.studio.series import Series
from graft.sizes import MIB
from graft.storage.commits import sealed_manifest

REJECTS = 50  # rows that are named
EVENTS = 200  # the last ones
HASHED = 256 * MIB  # of a checkpoint that is read byte by byte to see whether it is whole
TEXTS = 1 << 20  # bytes of samples.md from which only the end would be asked


def facts_of(runs: Runs, name: str, series: Series) -> dict[str, Any]:
    """Return everything that a run's page shows but the curves. Raises ApiError for an unknown name."""
    seen = runs.one(name)
    folders = runs.folders()
    job = runs.job(name)
    started_as = runs.started_as(name)
    log = log_tail(runs.home, started_as)
    typed = job.command if job is not None else None
    origin = origin_of(runs.home, started_as)
    facts = {**seen, "log": log, "typed": typed, "origin": origin, "home": str(runs.home)}
    if name not in folders:
        return facts | {"folder": str(runs.home / name), "begun": False}
    folder = folders[name]
    spent, pace = series.seconds()
    left = None if seen["of"] is None or seen["step"] is None else max(seen["of"] - seen["step"], 0)
    starts = [one["start"] for one in series.told if isinstance(one.get("start"), Mapping)]
    return facts | {
        "begun": True,
        "folder": str(folder),
        "command": shlex.join(["graft", "train", str(folder)]),
        "seconds": spent,
        "left_s": pace * left if pace is not None and left and seen["state"] == "running" else None,
        "about": starts[-1] if starts else {},
        "recipe": _text(folder / "recipe.yaml"),
        "data": _data(folder / "data_report.json"),
        "notes": _quiet(kept_notes, folder / "notes.json"),
        "events": _events(series.told)[-EVENTS:],
        "checkpoints": [_checkpoint(step, path) for step, path in storage.steps(folder / "checkpoints")],
        "adapter": _size(folder / "adapter"),
        "samples": _samples(folder),
        "scores": _scores(folder),
        "report": (folder / "report.html").is_file(),
    }


def _scores(folder: Path) -> dict[str, Any]:
    record = read_run(folder)
    return {"before": dict(record.before), "after": dict(record.after), "rows": record.scored}


def _events(told: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what happened, in its order: {kind, text, time}."""
    events = []
    for one in told:
        for kind in ("start", "resumed", "warning", "end"):
            if kind not in one:
                continue
            inner = one[kind]
            time = str(inner.get("time", "")) if isinstance(inner, Mapping) else ""
            text = f"from step {inner}" if kind == "resumed" else str(inner) if kind == "warning" else ""
            events.append({"kind": kind, "text": text, "time": time})
    return events


def _data(path: Path) -> dict[str, Any]:
    """Return a run's data report, with its notes; {} where there is none that can be read."""
    try:
        report = json.loads(path.read_bytes())
        return report_facts(report)
    except (OSError, ValueError, RecursionError, TypeError, LookupError, AttributeError):
        return {}


def report_facts(report: dict[str, Any]) -> dict[str, Any]:
    """Return what a page shows of a data report.  report: as `DataReport.json` gives it."""
    known = {key: value for key, value in report.items() if key in DataReport.__dataclass_fields__}
    notes = DataReport.from_json({"rejects": [], **known}).notes()
    kept = ("files", "read", "train", "eval", "rejected", "examples", "tokens", "tokens_learnt", "lengths",
            "histogram", "max_length", "cut", "duplicates", "overlap", "labels", "samples")  # fmt: skip
    rejects = known.get("rejects") or []
    facts = {key: known.get(key) for key in kept}
    return facts | {"notes": notes, "rejects": rejects[:REJECTS], "rejects_all": len(rejects)}


def _checkpoint(step: int, folder: Path) -> dict[str, Any]:
    found = _size(folder)
    size = int(found["bytes"]) if found else 0
    facts = {"step": step, "name": folder.name, "bytes": size, "hashed": size <= HASHED}
    try:
        stamp = (folder / storage.MANIFEST).stat().st_mtime_ns
        digest, wrong = _looked_at(folder, stamp, size)
    except OSError:
        digest, wrong = "", "it has no manifest"
    return facts | {"digest": digest, "wrong": wrong}


@functools.lru_cache(maxsize=256)
def _looked_at(folder: Path, stamp: int, size: int) -> tuple[str, str]:
    """Return the digest of a checkpoint's manifest, and what is wrong with it.

    A large one is compared by the sizes of its files alone.  stamp, size: others look again.
    """
    try:
        body = sealed_manifest(folder / storage.MANIFEST)
        if size <= HASHED:
            storage.validate(folder)
        else:
            for file, entry in body["files"].items():
                if (folder / file).stat().st_size != entry["bytes"]:
                    return "", f"{file} has another size than the manifest says"
        return _first(folder), ""
    except CheckpointError as error:
        return "", error.given.replace(f"{folder}/", "")
    except OSError as error:
        return "", f"it cannot be read: {error.strerror}"


def _first(folder: Path) -> str:
    """Return the beginning of the digest that a manifest ends with."""
    return str(json.loads((folder / storage.MANIFEST).read_bytes())["sha256"])[:12]


def _samples(folder: Path) -> dict[str, Any]:
    """Return the answers to the sample prompts over time, some steps of them."""
    try:
        prompts = list(read(folder).train.samples)
    except (OSError, GraftError):
        return {}
    text = _text(folder / "samples.md")
    if not prompts or not text or len(text) > TEXTS:
        return {}
    found = by_step(text, prompts)
    steps = spread(sorted(found))
    return {"prompts": prompts, "steps": [{"step": step, "answers": list(found[step])} for step in steps]}


def _size(folder: Path) -> dict[str, Any] | None:
    if not folder.is_dir():
        return None
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:
            continue
    return {"folder": str(folder), "bytes": total}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _quiet(reader: Any, path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)
        return reader(path)
