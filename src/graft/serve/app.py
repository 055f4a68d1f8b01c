"""The HTTP application: OpenAI's routes, vLLM's for adapters, health and metrics.

Every route declares its role (`security.role`); one that declares none is refused for everybody. Nothing is
fetched from the network, and no name in a request becomes a path.
"""

import asyncio
import hashlib
import time
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse

import graft
from graft.base.base import Base
from graft.serve import chat, completions, states
from graft.serve.answers import (
    ChatCompletion,
    Classes,
    Embeddings,
    Health,
    Loaded,
    Model,
    Models,
    Ready,
    TextCompletion,
    Unloaded,
    document,
    told,
)
from graft.serve.failures import ApiError, add_handlers
from graft.serve.grammar import Grammars
from graft.serve.limits import Limits
from graft.serve.logs import Logged
from graft.serve.metrics import metrics
from graft.serve.registry import Info, Registry
from graft.serve.schema import (
    ChatAsked,
    ClassifyAsked,
    CompletionAsked,
    EmbeddingsAsked,
    LoadAsked,
    UnloadAsked,
)
from graft.serve.security import Gate, Keys, check_role, role
from graft.serve.texts import Served
from graft.serve.worker import Worker

BODY = (408, 413, 415)  # refusals of bodies
WRITTEN = (*BODY, 404, 429, 503)
LOOPBACK = frozenset(["127.0.0.1", "localhost", "[::1]"])


def create_app(
    worker: Worker,
    registry: Registry,
    *,
    name: str,
    keys: Keys | None = None,
    limits: Limits | None = None,
    hosts: frozenset[str] | None = LOOPBACK,
    origins: frozenset[str] = frozenset(),
) -> FastAPI:
    """Return the application.

    name: under which the bare base is served.  hosts: names in Host headers that are answered; None: all.
    origins: of pages whose requests are answered, beside those that come without an origin.
    """
    base: Base = worker.base
    app = bare_app(keys=keys, limits=limits, hosts=hosts, origins=origins)
    print_ = hashlib.sha256(f"{base.fingerprint()} {graft.__version__}".encode()).hexdigest()[:12]
    app.state.served = Served(
        worker=worker,
        registry=registry,
        limits=limits or Limits(),
        name=name,
        grammars=Grammars(base.tokenizer, base.vocabulary),
        created=int(time.time()),
        fingerprint=f"fp_{print_}",
    )
    _add_openai(app)
    _add_adapters(app)
    _add_state(app)
    return app


def bare_app(
    *,
    keys: Keys | None = None,
    limits: Limits | None = None,
    hosts: frozenset[str] | None = LOOPBACK,
    origins: frozenset[str] = frozenset(),
) -> FastAPI:
    """Return an application without routes that guards and logs whatever is added to it; see `create_app`."""
    app = FastAPI(
        title="Graft",
        version=graft.__version__,
        openapi_url=None,  # see below: with a role
        docs_url=None,
        redoc_url=None,
        dependencies=[Depends(check_role)],
    )
    app.state.keys, app.state.token = keys or Keys(), None
    app.state.limits = limits or Limits()
    add_handlers(app)

    @app.get("/openapi.json", include_in_schema=False)
    @role("infer")
    async def openapi() -> JSONResponse:
        return JSONResponse(document(app))

    app.add_middleware(Gate, limits=app.state.limits, hosts=hosts, origins=origins)
    app.add_middleware(Logged)  # the outermost: what is refused is logged too
    return app


def _add_openai(app: FastAPI) -> None:
    @app.get("/v1/models", responses=told(Models))
    @role("infer")
    async def models(request: Request) -> JSONResponse:
        served: Served = request.app.state.served
        listed = [_base_model(served), *(_model(served, info) for info in served.registry.infos())]
        return JSONResponse({"object": "list", "data": listed})

    @app.get("/v1/models/{model:path}", responses=told(Model, 404))
    @role("infer")
    async def model(request: Request, model: str) -> JSONResponse:
        served: Served = request.app.state.served
        if model == served.name:
            return JSONResponse(_base_model(served))
        name = served.registry.known(model).name
        info = next(info for info in served.registry.infos() if info.name == name)
        return JSONResponse(_model(served, info))

    @app.post("/v1/chat/completions", responses=told(ChatCompletion, *WRITTEN, stream=True))
    @role("infer")
    async def chat_completions(request: Request, asked: ChatAsked) -> Any:
        return await chat.answer(request, asked)

    @app.post("/v1/completions", responses=told(TextCompletion, *WRITTEN, stream=True))
    @role("infer")
    async def text_completions(request: Request, asked: CompletionAsked) -> Any:
        return await completions.answer(request, asked)

    @app.post("/v1/embeddings", responses=told(Embeddings, *WRITTEN))
    @role("infer")
    async def embeddings(request: Request, asked: EmbeddingsAsked) -> JSONResponse:
        return await states.embed(request, asked)

    @app.post("/v1/classify", responses=told(Classes, *WRITTEN))
    @role("infer")
    async def classify(request: Request, asked: ClassifyAsked) -> JSONResponse:
        return await states.classify(request, asked)


def _base_model(served: Served) -> dict[str, Any]:
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "graft",
        "root": served.name,
        "parent": None,
        "system_fingerprint": served.version(),
        "quant": served.base.quant,
    }


def _model(served: Served, info: Info) -> dict[str, Any]:
    """Return what is told of an adapter.  batched: whether its texts share batches with those of others."""
    return {
        "id": info.name,
        "object": "model",
        "created": info.created,
        "owned_by": "graft",
        "root": info.name,
        "parent": served.name,
        "methods": list(info.methods),
        "digest": info.digest[:64],
        "system_fingerprint": served.version(info.digest),
        "loaded": info.loaded,
        "pinned": info.pinned,
        "batched": not info.alone,
        "alone_because": info.alone or None,
    }


def _add_adapters(app: FastAPI) -> None:
    @app.post("/v1/load_lora_adapter", responses=told(Loaded, *BODY, 404, 503))
    @role("admin")
    async def load(request: Request, asked: LoadAsked) -> JSONResponse:
        served: Served = request.app.state.served
        if asked.lora_path not in (None, asked.lora_name):
            raise ApiError(
                400,
                "lora_path can only be the name of the adapter's folder, which is lora_name: leave it out",
                param="lora_path",
            )
        await asyncio.wrap_future(served.worker.load_adapter(asked.lora_name))
        return JSONResponse({"loaded": asked.lora_name})

    @app.post("/v1/unload_lora_adapter", responses=told(Unloaded, *BODY, 404, 503))
    @role("admin")
    async def unload(request: Request, asked: UnloadAsked) -> JSONResponse:
        served: Served = request.app.state.served
        await asyncio.wrap_future(served.worker.call(lambda: served.registry.unload(asked.lora_name)))
        return JSONResponse({"unloaded": asked.lora_name})


def _add_state(app: FastAPI) -> None:
    @app.get("/health", responses=told(Health))
    @role("open")
    async def health() -> JSONResponse:
        return JSONResponse({"status": "ok"})

    @app.get("/ready", responses=told(Ready, 503))
    @role("open")
    async def ready(request: Request) -> JSONResponse:
        served: Served = request.app.state.served
        if not served.worker.taking:
            raise ApiError(
                503, "the server stops, or its engine has failed", code="not_ready", retry_after_s=5
            )
        return JSONResponse({"status": "ready", "model": served.name})

    @app.get("/metrics", responses=told(None))
    @role("infer")
    async def show_metrics(request: Request) -> PlainTextResponse:
        text = metrics(request.app.state.served)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4; charset=utf-8")
