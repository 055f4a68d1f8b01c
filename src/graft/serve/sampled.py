"""The settings of a request's texts: checked against the limits, and as the engine takes them."""

from typing import Any

from graft.generate.sampling import Sampling
from graft.serve.failures import ApiError
from graft.serve.limits import Limits
from graft.serve.schema import Sampled

GREEDY = 1e-5  # temperatures below it choose the likeliest token: logits divided by them are no numbers


def require_sampling(asked: Sampled, limits: Limits, logprobs: int | None) -> None:
    """Raise ApiError for settings beyond the limits."""
    stops = [asked.stop] if isinstance(asked.stop, str) else asked.stop or []
    if len(stops) > limits.stops or any(not 0 < len(stop) <= limits.stop_chars for stop in stops):
        raise ApiError(
            400, f"at most {limits.stops} stops of 1 to {limits.stop_chars} characters", param="stop"
        )
    if len(asked.logit_bias or {}) > limits.logit_bias:
        raise ApiError(400, f"at most {limits.logit_bias} entries", param="logit_bias")
    if logprobs is not None and logprobs > limits.top_logprobs:
        param = "top_logprobs" if "top_logprobs" in asked.model_fields_set else "logprobs"
        raise ApiError(400, f"at most {limits.top_logprobs} alternatives", param=param)
    if asked.stream_options is not None and not asked.stream:
        raise ApiError(400, "stream_options without stream", param="stream_options")


def sampling(asked: Sampled, most: int, logprobs: int | None, base: Any) -> Sampling:
    """Return the settings of the texts. What is not said is as in OpenAI's API: temperature and top_p 1."""
    warm = 1.0 if asked.temperature is None else asked.temperature
    warm = 0.0 if warm < GREEDY else warm
    stops = (asked.stop,) if isinstance(asked.stop, str) else tuple(asked.stop or ())
    return Sampling(
        max_new_tokens=most,
        do_sample=warm > 0,
        temperature=warm if warm > 0 else 1.0,
        top_p=asked.top_p or 1.0,
        top_k=max(asked.top_k or 0, 0),
        min_p=asked.min_p or 0.0,
        repetition_penalty=asked.repetition_penalty or 1.0,
        presence_penalty=asked.presence_penalty or 0.0,
        frequency_penalty=asked.frequency_penalty or 0.0,
        logit_bias=_bias(asked, base),
        min_new_tokens=min(asked.min_tokens or 0, most),
        stop=stops,
        seed=None if asked.seed is None else asked.seed % 2**63,
        logprobs=logprobs,
    )


def _bias(asked: Sampled, base: Any) -> dict[int, float]:
    bias = {}
    for token, value in (asked.logit_bias or {}).items():
        if not (token.isdecimal() and len(token) < 10 and int(token) < base.vocabulary):
            raise ApiError(400, f"{token[:40]!r} is no token of this model", param="logit_bias")
        bias[int(token)] = value
    return bias
