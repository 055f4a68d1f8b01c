"""The routes of a run's page: its facts, its curves as they grow, its report, what stops or continues it."""

import asyncio
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse, Response
from pydantic import BaseModel, ConfigDict

from graft.recipe.stages import stage_cards
from graft.runs.report.charts import PLANS_OF_TIMING, Plan, in_words, plans_of
from graft.serve.failures import ApiError
from graft.serve.security import role
from graft.serve.studio.facts import facts_of
from graft.serve.studio.processes import Refusal, resume, stop
from graft.serve.studio.runs import OPENED, runs_of
from graft.serve.studio.series import MEAN, MOST, Series
from graft.serve.studio.state import Studio, studio_of

router = APIRouter(prefix="/studio/api", tags=["runs"])
# A report is a page of its own, which may come from elsewhere: it sees nothing of the studio.
ALONE = {
    "Content-Security-Policy": (
        "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
        "img-src data:; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
STEP_TIME = Plan("Seconds per step", ("seconds",))


class Stop(BaseModel):
    model_config = ConfigDict(extra="forbid")

    at_once: bool = False  # kill it: the newest checkpoint stays


@router.get("/runs/{name}")
@role("infer")
async def run(request: Request, name: str) -> dict[str, Any]:
    """Return what is known of a run beside its curves."""
    studio = studio_of(request)
    return await asyncio.to_thread(_facts, studio, name)


@router.get("/runs/{name}/curves")
@role("infer")
async def curves(
    request: Request,
    name: str,
    axis: Literal["step", "tokens", "seconds"] = "step",
    low: Annotated[float | None, Query(alias="from", allow_inf_nan=False)] = None,
    high: Annotated[float | None, Query(alias="to", allow_inf_nan=False)] = None,
    since: Annotated[int | None, Query(ge=-1)] = None,
    generation: int | None = None,
    most: Annotated[int, Query(ge=16, le=1_000_000)] = MOST,
) -> dict[str, Any]:
    """Return the numbers of a run over an axis, thinned so that lowest and highest values stay.

    since: only steps after this one, as long as the generation is that of the answer before; whoever asks
    so has every step, whenever the connection was lost.
    """
    studio = studio_of(request)

    def found() -> dict[str, Any]:
        series = OPENED.of(runs_of(studio).folder(name))
        known = since if generation == series.generation else None
        return {
            "generation": series.generation,
            "whole": known is None,
            "step": series.step(),
            "series": series.view(axis, low, high, known, most),
            **({"charts": _charts(studio, name, series)} if known is None else {}),
        }

    return await asyncio.to_thread(found)


@router.get("/runs/{name}/report")
@role("infer")
async def report(request: Request, name: str) -> Response:
    """Return the report.html that a finished run wrote."""
    folder = await asyncio.to_thread(runs_of(studio_of(request)).folder, name)
    path = folder / "report.html"
    if not path.is_file() or path.is_symlink():
        raise ApiError(404, f"{name} has no report yet: it is written when the run ends")
    return FileResponse(path, media_type="text/html", headers=ALONE)


@router.post("/runs/{name}/stop")
@role("manage")
async def stop_run(request: Request, name: str, asked: Stop) -> dict[str, Any]:
    """Ask a run's process to end after its step, with a checkpoint; or kill it."""
    folder = await asyncio.to_thread(runs_of(studio_of(request)).folder, name)
    try:
        return {"pid": await asyncio.to_thread(stop, folder, at_once=asked.at_once)}
    except Refusal as error:
        raise ApiError(409, str(error), code="not_running") from None


@router.post("/runs/{name}/resume")
@role("manage")
async def resume_run(request: Request, name: str) -> dict[str, Any]:
    """Continue a run that was stopped, from its newest checkpoint."""
    studio = studio_of(request)
    folder = await asyncio.to_thread(runs_of(studio).folder, name)
    try:
        await asyncio.to_thread(resume, studio.home, name, folder)
    except Refusal as error:
        raise ApiError(409, str(error), code="running") from None
    return {"name": name}


def _facts(studio: Studio, name: str) -> dict[str, Any]:
    runs = runs_of(studio)
    folders = runs.folders()
    series = OPENED.of(folders[name]) if name in folders else Series(studio.home / "none")
    return facts_of(runs, name, series)


def _charts(studio: Studio, name: str, series: Series) -> list[dict[str, Any]]:
    """Return which numbers stand on which chart: {title, wide, left and right: [[name, words], ...]}."""
    known = dict.fromkeys(series.names())
    card = stage_cards().get(str(runs_of(studio).one(name)["stage"]))
    counts = card.counts if card is not None else "tok"
    charts = []
    for plan in (*plans_of(known), *PLANS_OF_TIMING, STEP_TIME):
        sides = {}
        for side in ("left", "right"):
            found = [one for one in getattr(plan, side) if one in known]
            with_mean = [each for one in found for each in (one, one + MEAN) if each in known]
            sides[side] = [[one, _words(one, counts)] for one in with_mean]
        if sides["left"] or sides["right"]:
            charts.append({"title": plan.title, "wide": plan.wide, **sides})
    return charts


def _words(name: str, counts: str) -> str:
    if name.endswith(MEAN):
        return f"{in_words(name.removesuffix(MEAN))}, running mean"
    if name == "tokens_per_s" and counts != "tok":
        return f"{counts} per second"
    return in_words(name)
