"""The answers of OpenAI's API, as /openapi.json tells them. Nothing is checked against them at run time."""

from typing import Any, Literal

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict


class Told(BaseModel):
    """A part of an answer, with all of its fields."""

    model_config = ConfigDict(extra="forbid", json_schema_serialization_defaults_required=True)


class Trouble(Told):
    message: str
    type: str
    param: str | None
    code: str | None


class Refusal(Told):
    error: Trouble


class Model(BaseModel):
    """A base or an adapter.  quant: of a base.  The other fields beyond OpenAI's: of an adapter."""

    model_config = ConfigDict(extra="forbid")
    id: str
    object: Literal["model"]
    created: int
    owned_by: Literal["graft"]
    root: str
    parent: str | None
    system_fingerprint: str
    quant: str | None = None
    methods: list[str] = []
    digest: str = ""
    loaded: bool = False
    pinned: bool = False
    batched: bool = True
    alone_because: str | None = None


class Models(Told):
    object: Literal["list"]
    data: list[Model]


class Usage(Told):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Alternative(Told):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(Alternative):
    top_logprobs: list[Alternative]


class ChatLogprobs(Told):
    content: list[TokenLogprob]
    refusal: None


class CalledFunction(Told):
    name: str
    arguments: str


class Call(Told):
    id: str
    type: Literal["function"]
    function: CalledFunction


class Spoken(BaseModel):
    model_config = ConfigDict(extra="forbid")
    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: list[Call] = []


class ChatChoice(Told):
    index: int
    message: Spoken
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatCompletion(Told):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage


class TextLogprobs(Told):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class TextChoice(Told):
    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Literal["stop", "length"]


class TextCompletion(Told):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[TextChoice]
    usage: Usage


class Embedding(Told):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Read(Told):
    prompt_tokens: int
    total_tokens: int


class Embeddings(Told):
    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: Read


class Class(BaseModel):
    """What a task head says of a text: a label and the probabilities of all, tags of words, or a reward."""

    model_config = ConfigDict(extra="forbid")
    index: int
    answer: Any
    label: str = ""
    probs: dict[str, float] = {}
    tags: list[Any] = []
    reward: float = 0.0


class Classes(Told):
    object: Literal["list"]
    model: str
    data: list[Class]


class Loaded(Told):
    loaded: str


class Unloaded(Told):
    unloaded: str


class Health(Told):
    status: Literal["ok"]


class Ready(Told):
    status: Literal["ready"]
    model: str


STREAM: Any = {"text/event-stream": {}}
TEXT: Any = {"text/plain": {"schema": {"type": "string"}}}
WHY = {
    400: "A wrong field; `param` names it.",
    401: "No key, or one that is not known.",
    403: "A key, host or origin that may not ask for this.",
    404: "No such model.",
    408: "Not done in time.",
    413: "The body is too large.",
    415: "The body is no JSON.",
    429: "Too many texts at once; Retry-After says when to come back.",
    431: "The headers are too large.",
    503: "Stopping, or no room; Retry-After says when to come back.",
}


def told(answer: type[BaseModel] | None, *also: int, stream: bool = False) -> dict[int | str, dict[str, Any]]:
    """Return the answers of a route for the document: of 200 and, in OpenAI's form, of each refusal.

    answer: None for a text.  also: codes beside those of every route.  stream: whether events are sent where
    they were asked for.
    """
    first: dict[str, Any] = {"description": "Done."}
    if answer is None:
        first["content"] = TEXT
    else:
        first["model"] = answer
    if stream:
        first["content"] = STREAM
    answers: dict[int | str, dict[str, Any]] = {200: first}
    for code in sorted({400, 401, 403, 431, *also}):
        answers[code] = {"model": Refusal, "description": WHY[code]}
    return answers


def document(app: FastAPI) -> dict[str, Any]:
    """Return an application's OpenAPI document: with the form of keys, without answers that never come."""
    made = app.openapi()
    parts = made.setdefault("components", {})
    parts["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    made["security"] = [{"key": []}]
    for operations in made["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)  # FastAPI's: ours are 400
            done = operation["responses"].get("200", {}).get("content", {})
            if "text/plain" in done:
                done.pop("application/json", None)
    for name in ("HTTPValidationError", "ValidationError"):
        parts.get("schemas", {}).pop(name, None)
    return made
