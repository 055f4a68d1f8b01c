"""Cases that schemathesis makes from the OpenAPI document: none ends in a defect or changes what follows."""

import pytest

pytest.importorskip("schemathesis")
pytest.importorskip("uvicorn")
import httpx
from api_fuzz import fuzz
from openai_server import ADMIN, listening, served_app
from served import write_adapters

from graft.models.load import load
from graft.serve.limits import Limits
from graft.serve.security import Keys

GOLDEN = {"model": "seedling", "prompt": "The kettle", "max_tokens": 4, "temperature": 0, "logprobs": 1}


def golden(url):
    """Return a greedy answer with its log-probabilities, and what /health says."""
    answer = httpx.post(f"{url}/v1/completions", json=GOLDEN, timeout=60)
    return answer.json()["choices"], httpx.get(f"{url}/health", timeout=60).json()


@pytest.mark.parametrize("count", [150, pytest.param(2_000, marks=pytest.mark.slow)])
def test_cases_of_the_document_end_as_it_says(tmp_path, count):
    """benchmarks/serving_fuzz sends 50,000. The time that one may take here is only a bound on a hang."""
    base, limits = load("seedling", dtype="fp32"), Limits(max_tokens=4)
    names = write_adapters(base, tmp_path, 6)
    with (
        served_app(base, tmp_path, limits=limits, keys=Keys.of(None, ADMIN), rows=8, waiting=64) as app,
        listening(app, limits) as url,
    ):
        before = golden(url)
        found = fuzz(url, ADMIN, ["seedling", *names], count, within_s=60)
        assert found.cases >= count and found.hung == []
        assert not found.faults, "\n\n".join(f"{n} x {text}" for text, n in found.faults.most_common(5))
        assert not [code for code in found.codes if code >= 500 and code != 503]
        assert found.codes[200] > count // 10  # enough of them were right
        assert golden(url) == before and app.state.served.by_key == {}


def test_the_document_tells_every_answer_and_the_form_of_keys():
    with served_app(load("seedling", dtype="fp32"), keys=Keys.of("secret", None)) as app:
        from fastapi.testclient import TestClient

        client = TestClient(app, base_url="http://localhost")
        assert client.get("/openapi.json").status_code == 401
        document = client.get("/openapi.json", headers={"Authorization": "Bearer secret"}).json()
    assert document["components"]["securitySchemes"] == {"key": {"type": "http", "scheme": "bearer"}}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            told = operation["responses"]
            assert "200" in told and "422" not in told, path
            for code in told.keys() - {"200"}:
                schema = told[code]["content"]["application/json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/Refusal"}, (path, code)
