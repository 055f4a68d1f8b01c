"""The routes of the page of a new run: what may be chosen, what is wrong, what it needs, and its start."""

import asyncio
import shlex
import tempfile
import time
from collections import OrderedDict
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from graft.errors import UsageError
from graft.recipe import Recipe
from graft.serve.failures import ApiError
from graft.serve.folders import NAME
from graft.serve.security import role
from graft.serve.studio.commands import answered
from graft.serve.studio.forms import Understood, offered, understood
from graft.serve.studio.processes import Refusal, start
from graft.serve.studio.state import Studio, studio_of
from graft.serve.studio.uploads import FILES, files_in

router = APIRouter(prefix="/studio/api", tags=["new run"])
FRESH_S = 60  # for which a plan is not asked again
KEPT = 32  # plans
UNNAMED = "NAME"  # of a run whose name is still to be typed
Text = Annotated[str, Field(max_length=4096)]


class Asked(BaseModel):
    model_config = ConfigDict(extra="forbid")

    values: Annotated[dict[str, Text], Field(max_length=200)]  # by dotted key of a recipe
    name: Annotated[str, Field(max_length=200)] = ""  # of the run


@router.get("/methods")
@role("infer")
async def methods(request: Request) -> dict[str, Any]:
    """Return what a form offers: methods with settings and presets, stages, keys with help, files, models."""
    studio = studio_of(request)
    files = await asyncio.to_thread(files_in, studio.home)
    served = [] if studio.served is None else [str(studio.served.base.name)]
    return {
        **await asyncio.to_thread(offered),
        "files": [str(studio.home / FILES / file["name"]) for file in files],
        "models": list(dict.fromkeys(["seedling", *served])),
    }


@router.post("/recipes")
@role("manage")
async def recipe(request: Request, asked: Asked) -> dict[str, Any]:
    """Return what a form means: the whole recipe and its command, or what is wrong, by field."""
    found = await asyncio.to_thread(_understood, studio_of(request), asked)
    return {
        "problems": found.problems,
        "notices": found.notices,
        "recipe": None if found.recipe is None else found.recipe.yaml(),
        "command": shlex.join(["graft", "train", *found.words]),
    }


@router.post("/plans")
@role("manage")
async def plan(request: Request, asked: Asked) -> dict[str, Any]:
    """Return what a run will hold in memory and how fast it will be, as `graft plan` reckons it."""
    found = await asyncio.to_thread(_understood, studio_of(request), asked)
    text = _whole(found).yaml()
    state = request.app.state
    if not hasattr(state, "plans"):
        state.plans = OrderedDict()
    when, facts = state.plans.get(text, (0.0, {}))
    if not facts or time.monotonic() - when > FRESH_S:
        with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            facts = await answered(request, ["plan", file.name, "--json"])
        state.plans[text] = (time.monotonic(), facts)
        while len(state.plans) > KEPT:
            state.plans.popitem(last=False)
    return dict(facts)


@router.post("/runs", status_code=201)
@role("manage")
async def new_run(request: Request, asked: Asked) -> dict[str, Any]:
    """Start a run in a process of its own."""
    return await asyncio.to_thread(_started, studio_of(request), asked)


def _started(studio: Studio, asked: Asked) -> dict[str, Any]:
    chosen = _whole(_understood(studio, asked))
    try:
        start(studio.home, chosen.model_dump(), asked.name)
    except Refusal as error:
        raise ApiError(409, str(error), param="name", code="taken") from None
    except UsageError as error:
        raise ApiError(400, str(error), param="name") from None
    return {"name": asked.name}


def _understood(studio: Studio, asked: Asked) -> Understood:
    # A name that is none is told when the run is started; until then it is still being typed.
    name = asked.name if NAME.fullmatch(asked.name) else UNNAMED
    return understood(asked.values, studio.home / name)


def _whole(found: Understood) -> Recipe:
    """Return the recipe of a form. Raises ApiError with the first thing that is wrong."""
    if found.recipe is None:
        key, problem = next(iter(found.problems.items()))
        raise ApiError(400, problem, param=key or None, code="wrong_recipe")
    return found.recipe
