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


@pytest.fixture(scope="module")
def guarded_root(tmp_path_factory):
    """The folder of the adapters of `guarded`."""
    return tmp_path_factory.mktemp("adapters")


@pytest.fixture(scope="module")
def guarded(guarded_root, tmp_path_factory):
    """An application with two keys and an admin's, small limits and the pages of the studio."""
    pytest.importorskip("uvicorn")
    from openai_server import ADMIN, KEY, OTHER, SMALL, served_app
    from served import write_adapters

    from graft.models.load import load
    from graft.serve.security import Keys
    from graft.serve.studio.app import Studio, add_studio

    base = load("seedling", dtype="fp32")
    write_adapters(base, guarded_root, 2)
    keys = Keys((*Keys.of(KEY, None).infer, *Keys.of(OTHER, None).infer), Keys.of(None, ADMIN).admin)
    with served_app(base, guarded_root, limits=SMALL, keys=keys, waiting=32) as app:
        home = tmp_path_factory.mktemp("home")
        add_studio(app, Studio(home, home / "votes.sqlite3", app.state.served))
        yield app


@pytest.fixture(scope="module")
def web(guarded):
    """A client of it that sends the key."""
    from fastapi.testclient import TestClient
    from openai_server import KEY

    return TestClient(guarded, base_url="http://localhost", headers={"Authorization": f"Bearer {KEY}"})
