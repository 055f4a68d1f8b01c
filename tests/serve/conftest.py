"""A server for all tests of one file, and clients for it."""

import pytest


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The parts of a server of a seedling and six adapters."""
    pytest.importorskip("uvicorn")
    from openai_server import open_place

    with open_place(tmp_path_factory.mktemp("adapters")) as parts:
        yield parts


@pytest.fixture
def client(place):
    openai = pytest.importorskip("openai")
    return openai.OpenAI(base_url=f"{place['url']}/v1", api_key=place["key"], max_retries=0)


@pytest.fixture
def http(place):
    httpx = pytest.importorskip("httpx")
    key = {"Authorization": f"Bearer {place['key']}"}
    with httpx.Client(base_url=place["url"], headers=key, timeout=60) as client:
        yield client
