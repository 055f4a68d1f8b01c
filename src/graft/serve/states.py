"""POST /v1/embeddings and /v1/classify: what is read of a text's states, and not written."""

import asyncio
import base64
import struct
from typing import Any

import torch
from fastapi import Request
from fastapi.responses import JSONResponse

from graft.base.base import Base
from graft.evaluate.answers import Prediction, predictions
from graft.generate.prompts import encoded, rooms
from graft.serve.failures import ApiError
from graft.serve.schema import ClassifyAsked, EmbeddingsAsked
from graft.serve.texts import Served

MOST = 64  # texts of one request


async def embed(request: Request, asked: EmbeddingsAsked) -> JSONResponse:
    """Return one vector for each text: the mean of its last hidden states, of length 1."""
    served: Served = request.app.state.served
    served.adapter(asked.model)
    given: Any = [asked.input] if isinstance(asked.input, str) or _is_ids(asked.input) else asked.input
    if not 0 < len(given) <= MOST or any(not one for one in given):
        raise ApiError(400, f"1 to {MOST} texts, none of them empty", param="input")
    ids = await asyncio.to_thread(encoded, served.base, given)
    if served.base.family == "causal":
        await asyncio.to_thread(rooms, served.base, ids, [None] * len(ids), 1)
    vectors = await asyncio.wrap_future(
        served.worker.call(lambda: _vectors(served, ids, asked.model), served.adapter(asked.model))
    )
    data = []
    for index, vector in enumerate(vectors):
        packed = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
        shown = packed if asked.encoding_format == "base64" else vector
        data.append({"object": "embedding", "index": index, "embedding": shown})
    count = sum(map(len, ids))
    counts = {"prompt_tokens": count, "total_tokens": count}
    return JSONResponse({"object": "list", "data": data, "model": asked.model, "usage": counts})


def _is_ids(given: Any) -> bool:
    return bool(given) and isinstance(given[0], int)


def _vectors(served: Served, ids: list[list[int]], model: str) -> list[list[float]]:
    """Return the vectors of texts; in the engine's thread."""
    base: Base = served.base
    name = served.adapter(model)
    version = None if name is None else served.registry.acquire(name)
    try:
        vectors = []
        cache = {"use_cache": False} if base.family == "causal" else {}
        for one in ids:
            rows = torch.tensor([one], device=base.device)
            output = base(
                rows,
                adapters=[None if version is None else version.adapter],
                output_hidden_states=True,
                **cache,
            )
            mean = output.hidden_states[-1][0].float().mean(0)
            vectors.append(torch.nn.functional.normalize(mean, dim=0).tolist())
        return vectors
    finally:
        if version is not None:
            served.registry.release(version)


async def classify(request: Request, asked: ClassifyAsked) -> JSONResponse:
    """Return the label of each text and the probabilities of all, by an adapter with a task head."""
    served: Served = request.app.state.served
    name = served.adapter(asked.model)
    texts = [asked.input] if isinstance(asked.input, str) else asked.input
    if not 0 < len(texts) <= MOST:
        raise ApiError(400, f"1 to {MOST} texts", param="input")
    if name is None:
        raise ApiError(400, f"{asked.model} has no classes; an adapter with a task head has", param="model")

    def measure() -> list[Prediction]:
        version = served.registry.acquire(name)
        try:
            if not version.heads:
                raise ApiError(400, f"the adapter {name} has no task head", param="model")
            return predictions(served.base, texts, [version.adapter] * len(texts))
        finally:
            served.registry.release(version)

    found = await asyncio.wrap_future(served.worker.call(measure, name))
    data = []
    for index, one in enumerate(found):
        facts = {"label": one.label, "probs": dict(one.probabilities), "tags": one.tags, "reward": one.reward}
        data.append(
            {
                "index": index,
                "answer": one.answer,
                **{k: v for k, v in facts.items() if v not in (None, {}, ())},
            }
        )
    return JSONResponse({"object": "list", "model": asked.model, "data": data})
