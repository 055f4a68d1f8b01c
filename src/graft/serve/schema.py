"""The requests of OpenAI's API that are understood. Fields that are not here, nor ignored, are refused.

Bounds that depend on the server's limits are checked in `texts`.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, model_validator

from graft.serve.limits import Limits

# Said by clients, and without effect on the text.
IGNORED = frozenset(
    [
        "user",
        "store",
        "metadata",
        "service_tier",
        "prompt_cache_key",
        "safety_identifier",
        "parallel_tool_calls",
    ]
)
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False, strict=True)]
Whole = Annotated[int, Field(strict=True)]
Model = Annotated[str, Field(max_length=256)]


class Asked(BaseModel):
    """A body of JSON, without the fields that are ignored."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _without_ignored(cls, given: Any) -> Any:
        if isinstance(given, dict):
            return {key: value for key, value in given.items() if key not in IGNORED}
        return given


class Strict(BaseModel):
    """A part of a body, none of whose fields are ignored."""

    model_config = ConfigDict(extra="forbid")


class StreamOptions(Strict):
    include_usage: StrictBool = False
    include_obfuscation: StrictBool = False  # never done: over TLS lengths of pieces would tell little here


class Sampled(Asked):
    """What chat and text completions have in common."""

    model: Model
    stream: StrictBool = False
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False, strict=True)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False, strict=True)] | None = None
    n: Annotated[int, Field(ge=1, strict=True)] | None = None
    stop: str | list[str] | None = None
    seed: Whole | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: (
        dict[str, Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False, strict=True)]] | None
    ) = None
    # beyond OpenAI, with vLLM's names
    top_k: Annotated[int, Field(ge=-1, le=1_000_000, strict=True)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False, strict=True)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=10, allow_inf_nan=False, strict=True)] | None = (
        None
    )
    min_tokens: Annotated[int, Field(ge=0, strict=True)] | None = None

    @property
    def counts(self) -> bool:
        """Whether a stream ends with a chunk that tells how many tokens were read and written."""
        return self.stream_options is not None and self.stream_options.include_usage


class Part(Strict):
    """A piece of a message: only text is understood."""

    type: Literal["text"]
    text: str


class Function(Strict):
    name: str
    arguments: str


class ToolCall(Strict):
    id: str = ""
    type: Literal["function"] = "function"
    function: Function


class Message(Strict):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    refusal: None = None


class Declared(Strict):
    name: Annotated[str, Field(min_length=1, max_length=64)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Strict):
    type: Literal["function"]
    function: Declared


class JsonSchema(Strict):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)
    name: str
    description: str | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


class ResponseFormat(Strict):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class ChatAsked(Sampled):
    messages: Annotated[list[Message], Field(min_length=1, max_length=Limits.messages)]
    max_tokens: Annotated[int, Field(ge=1, strict=True)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, strict=True)] | None = None
    logprobs: StrictBool | None = None
    top_logprobs: Annotated[int, Field(ge=0, strict=True)] | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    response_format: ResponseFormat | None = None


class CompletionAsked(Sampled):
    prompt: str | list[str] | list[Whole] | list[list[Whole]]
    max_tokens: Annotated[int, Field(ge=1, strict=True)] | None = None
    echo: StrictBool = False
    logprobs: Annotated[int, Field(ge=0, strict=True)] | None = None
    best_of: Annotated[int, Field(ge=1, le=1, strict=True)] | None = None
    suffix: str | None = None


class EmbeddingsAsked(Asked):
    model: Model
    input: str | list[str] | list[Whole] | list[list[Whole]]
    encoding_format: Literal["float", "base64"] = "float"


class ClassifyAsked(Asked):
    model: Model
    input: str | list[str]


class LoadAsked(Asked):
    """vLLM's request.  lora_path: the name of a folder inside that of all adapters, never a path."""

    lora_name: str
    lora_path: str | None = None


class UnloadAsked(Asked):
    lora_name: str
