"""The routes of the runs page: the list, and several runs side by side."""

import asyncio
import functools
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from graft.runs.records import read_run
from graft.runs.report.curves import is_number
from graft.runs.table import LOWER, SEED, comparison, differing, line_of
from graft.serve.failures import ApiError
from graft.serve.security import role
from graft.serve.studio.overview import Runs
from graft.serve.studio.series import MEAN, Opened
from graft.serve.studio.state import Studio, studio_of

router = APIRouter(prefix="/studio/api", tags=["runs"])
SIDE_BY_SIDE = 8  # runs
OPENED = Opened()
POINTS = 800  # of each curve that lies over others


@functools.lru_cache(maxsize=16)
def runs_in(home: Path) -> Runs:
    """Return the runs of a folder, as every request sees them."""
    return Runs(home)


def runs_of(studio: Studio) -> Runs:
    """Return the runs of a studio."""
    return runs_in(studio.home)


@router.get("/runs")
@role("infer")
async def runs(request: Request) -> dict[str, Any]:
    """Return the runs of the folder, the newest first, and how many the next requests will tell of."""
    studio = studio_of(request)
    listed, unread = await asyncio.to_thread(runs_of(studio).all)
    return {"home": str(studio.home), "runs": listed, "unread": unread}


@router.get("/compare")
@role("infer")
async def compare(
    request: Request, run: Annotated[list[str], Query(min_length=2, max_length=SIDE_BY_SIDE)]
) -> dict[str, Any]:
    """Return some runs side by side: settings that differ, scores, means over seeds, curves of the loss."""
    if len(set(run)) < len(run):
        raise ApiError(400, "a run is named twice: name each once", param="run")
    return await asyncio.to_thread(_compared, studio_of(request), run)


def _compared(studio: Studio, names: list[str]) -> dict[str, Any]:
    folders = runs_of(studio).folders()
    for name in names:
        if name not in folders:
            raise ApiError(404, f"there is no run {name[:80]!r} in this folder", param="run")
    records = {name: read_run(folders[name]) for name in names}
    lines = [line for name in names if (line := line_of(name, records[name])) is not None]
    found = comparison(lines)
    settings = {name: record.settings for name, record in records.items()}
    columns = [key for key in differing([*settings.values()]) if key != "output"]
    curves: dict[str, dict[str, list[list[float]]]] = {}
    for name in names:
        series = OPENED.of(folders[name])
        for key in ("loss", "loss" + MEAN):
            curves.setdefault(key, {})[name] = series.view(most=POINTS, only=key).get(key, [[], []])
    return {
        "runs": names,
        "columns": columns,
        "settings": {name: {key: one.get(key) for key in columns} for name, one in settings.items()},
        "metrics": [{"name": name, "lower": name in LOWER} for name in found.metrics],
        "scores": {
            line.name: {name: _both(line.before.get(name), line.after.get(name)) for name in found.metrics}
            for line in lines
        },
        "groups": [
            {
                "runs": list(group.names),
                "settings": {key: group.settings.get(key) for key in columns if key != SEED},
                "mean": dict(group.mean),
                "deviation": dict(group.deviation),
            }
            for group in found.repeated
        ],
        "warnings": list(found.warnings),
        "curves": curves,
    }


def _both(before: Any, after: Any) -> list[float | None]:
    return [value if is_number(value) else None for value in (before, after)]
