"""What the chat page asks beside the answers themselves, which come from OpenAI's routes."""

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict

from graft.core.positions import context_length
from graft.errors import AdapterError
from graft.serve.failures import ApiError
from graft.serve.folders import look
from graft.serve.security import role
from graft.serve.studio.state import Studio, studio_of
from graft.serve.texts import Served

router = APIRouter(prefix="/studio/api")


class LoadAsked(BaseModel):
    """name: of a run, or of an adapter's folder."""

    model_config = ConfigDict(extra="forbid")
    name: str


@router.get("/chat")
@role("infer")
async def facts(request: Request) -> dict[str, Any]:
    """Return the models that answer, and how they are asked.

    base: the name of the model without adapters.  models: all names, the base first; batched: whether a model
    writes together with others.  finished: runs with an adapter that nobody has loaded yet.
    template: whether the tokenizer has a chat template.  context: tokens of a prompt and its answer; None
    without a limit.  longest: tokens that one answer may have.
    """
    studio, served = _served(request)
    infos = served.registry.infos()
    models = [{"name": served.name, "methods": [], "batched": True}]
    models += [
        {"name": info.name, "methods": list(info.methods), "batched": not info.alone} for info in infos
    ]
    known = {info.name for info in infos}
    return {
        "base": served.name,
        "models": models,
        "finished": await asyncio.to_thread(_finished, studio, known),
        "template": bool(getattr(served.base.tokenizer, "chat_template", None)),
        "context": context_length(served.base.model.config),
        "longest": served.limits.max_tokens,
    }


@router.post("/chat/load")
@role("manage")
async def load(request: Request, asked: LoadAsked) -> dict[str, str]:
    """Serve an adapter of the folder as its files are now. Raises ApiError, AdapterError."""
    _, served = _served(request)
    await asyncio.wrap_future(served.worker.call(lambda: served.registry.load(asked.name)))
    return {"loaded": asked.name}


def _served(request: Request) -> tuple[Studio, Served]:
    studio = studio_of(request)
    if studio.served is None:
        raise ApiError(
            409, "no model is served: start the studio with one, graft studio MODEL", code="no_model"
        )
    return studio, studio.served


def _finished(studio: Studio, known: set[str]) -> list[str]:
    """Return the runs that hold an adapter, and are not among the known models."""
    names = []
    for folder in sorted(studio.home.iterdir()) if studio.home.is_dir() else []:
        if folder.name in known or not folder.is_dir():
            continue
        try:
            if look(studio.home, folder.name) is not None:
                names.append(folder.name)
        except AdapterError:
            continue  # half-written, or damaged: what loads it says so
    return names
