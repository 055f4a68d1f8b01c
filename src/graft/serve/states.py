"""POST /v1/embeddings and /v1/classify: what is read of a text's states, and not written."""

import asyncio
import base64
import struct
from functools import partial

import torch
from fastapi import Request
from fastapi.responses import JSONResponse

from graft.base.base import Base
from graft.evaluate.answers import Prediction, predictions
from graft.serve.failures import ApiError
from graft.serve.schema import ClassifyAsked, EmbeddingsAsked
from graft.serve.texts import Served, counted, held, in_engine, read_prompts, token_prompts

MOST = 64  # texts of one request
TOGETHER = 8  # texts that are classified between two steps of the engine


async def embed(request: Request, asked: EmbeddingsAsked) -> JSONResponse:
    """Return one vector for each text: the mean of its last hidden states, of length 1."""
    served: Served = request.app.state.served
    served.adapter(asked.model)
    given = token_prompts(asked.input, served, "input")
    if len(given) > MOST or not all(given):
        raise ApiError(400, f"1 to {MOST} texts, none of them empty", param="input", code="invalid_value")
    vectors = []
    with counted(served, request.state.key, 1):
        ids, _ = await asyncio.to_thread(read_prompts, served, given, "input")
        async with held(served, asked.model) as version:
            name = None if version is None else version.adapter
            for one in ids:  # between two of them the texts of others go on
                vectors.append(await in_engine(served, partial(_vector, served.base, name, one)))
    data = []
    for index, vector in enumerate(vectors):
        packed = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
        shown = packed if asked.encoding_format == "base64" else vector
        data.append({"object": "embedding", "index": index, "embedding": shown})
    count = sum(map(len, ids))
    counts = {"prompt_tokens": count, "total_tokens": count}
    return JSONResponse({"object": "list", "data": data, "model": asked.model, "usage": counts})


def _vector(base: Base, adapter: str | None, ids: list[int]) -> list[float]:
    """Return the vector of one text; in the engine's thread."""
    cache = {"use_cache": False} if base.family == "causal" else {}
    rows = torch.tensor([ids], device=base.device)
    output = base(rows, adapters=[adapter], output_hidden_states=True, **cache)
    mean = output.hidden_states[-1][0].float().mean(0)
    vector: list[float] = torch.nn.functional.normalize(mean, dim=0).tolist()
    return vector


async def classify(request: Request, asked: ClassifyAsked) -> JSONResponse:
    """Return the label of each text and the probabilities of all, by an adapter with a task head."""
    served: Served = request.app.state.served
    name = served.adapter(asked.model)
    texts = [asked.input] if isinstance(asked.input, str) else asked.input
    if not 0 < len(texts) <= MOST:
        raise ApiError(400, f"1 to {MOST} texts", param="input", code="invalid_value")
    if name is None:
        raise ApiError(400, f"{asked.model} has no classes; an adapter with a task head has", param="model")
    found: list[Prediction] = []
    with counted(served, request.state.key, 1):
        await asyncio.to_thread(read_prompts, served, texts, "input")
        async with held(served, asked.model) as version:
            assert version is not None, "the bare base was refused"
            if not version.heads:
                raise ApiError(400, f"the adapter {name} has no task head", param="model")
            for start in range(0, len(texts), TOGETHER):
                some = texts[start : start + TOGETHER]
                names = [version.adapter] * len(some)
                found += await in_engine(served, partial(predictions, served.base, some, names))
    data = []
    for index, one in enumerate(found):
        facts = {"label": one.label, "probs": dict(one.probabilities), "tags": one.tags, "reward": one.reward}
        said = {key: value for key, value in facts.items() if value not in (None, {}, ())}
        data.append({"index": index, "answer": one.answer, **said})
    return JSONResponse({"object": "list", "model": asked.model, "data": data})
