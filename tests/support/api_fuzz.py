"""Requests that schemathesis makes from a server's OpenAPI document: such as follow it, and such as don't."""

import dataclasses
import time
from collections import Counter

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi import checks

# How many of a hundred cases go to each route, half of them right and half wrong; the rest get one each.
SHARES = {
    "POST /v1/chat/completions": 30,
    "POST /v1/completions": 24,
    "POST /v1/embeddings": 14,
    "POST /v1/classify": 8,
    "POST /v1/load_lora_adapter": 4,
    "POST /v1/unload_lora_adapter": 4,
    "GET /v1/models/{model}": 4,
}
CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]
NEEDED = {"model", "messages", "prompt", "input", "lora_name"}
ROUND = 500  # cases of one run of hypothesis, which are all different


@dataclasses.dataclass
class Found:
    """What became of the cases.  faults: what the document does not say, by its words; 503 is none."""

    codes: Counter = dataclasses.field(default_factory=Counter)
    faults: Counter = dataclasses.field(default_factory=Counter)
    hung: list[str] = dataclasses.field(default_factory=list)
    worst_s: float = 0.0

    @property
    def cases(self) -> int:
        return sum(self.codes.values()) + len(self.hung)


def fuzz(url, key, names, count, *, first_seed=0, within_s=5.0) -> Found:
    """Send so many cases to a server and judge the answers.

    key: of the admin.  names: of models, which many cases ask for.  first_seed: of the first round.
    within_s: what takes longer has hung.
    """
    found, left, number = Found(), count, first_seed
    session = requests.Session()
    session.headers["Authorization"] = f"Bearer {key}"
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json", headers=dict(session.headers))
    operations = sorted((one.ok() for one in schema.get_all_operations()), key=lambda one: one.label)
    total = sum(SHARES.get(one.label, 1) for one in operations)
    while left > 0:
        cases = min(left, ROUND * 10)
        for one in operations:
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                share = max(1, round(cases * SHARES.get(one.label, 1) / total / 2))
                number += 1
                _run(one.as_strategy(generation_mode=mode), share, number, names, session, within_s, found)
        left = count - found.cases
    return found


def _simplify(body: dict, name: str | None, kept: int) -> None:
    """Let a body ask for a model that there is, and keep only some of its other fields: rarely are all right.

    name, kept: None and 0 to leave it as it is.
    """
    for field in ("model", "lora_name"):
        if name is not None and field in body:
            body[field] = name
    for field in list(body)[kept:] if kept else []:
        if field not in NEEDED:
            del body[field]


def _run(strategy, count, number, names, session, within_s, found) -> None:
    how = settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )

    @seed(number)
    @how
    @given(case=strategy, name=st.sampled_from([*names, *names, None]), kept=st.integers(0, 6))
    def send(case, name, kept):
        if isinstance(case.body, dict):
            _simplify(case.body, name, kept)
        begun = time.monotonic()
        try:
            answer = case.call(session=session, timeout=within_s)
        except requests.Timeout:
            found.hung.append(case.as_curl_command())
            return
        found.worst_s = max(found.worst_s, time.monotonic() - begun)
        found.codes[answer.status_code] += 1
        if answer.status_code == 503:
            return
        try:
            case.validate_response(answer, checks=CHECKS)
        except FailureGroup as failed:
            found.faults[f"{case.operation.label}: {failed.exceptions[0]}"[:2000]] += 1

    send()
