"""Files of rows that are sent to the studio."""

import pytest

pytest.importorskip("httpx")
from starlette.testclient import TestClient

from graft.serve.app import bare_app
from graft.serve.studio import uploads
from graft.serve.studio.app import Studio, add_studio

BYTES = {"Content-Type": "application/octet-stream"}
ROWS = b'{"text": "a"}\n'


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    app = bare_app()
    home = tmp_path_factory.mktemp("none")
    add_studio(app, Studio(home, home / "votes.sqlite3"))
    return app


@pytest.fixture
def client(app, tmp_path):
    app.state.studio.home = tmp_path
    token = {"X-Graft-Token": app.state.token}
    client = TestClient(app, base_url="http://127.0.0.1", headers=token, raise_server_exceptions=False)
    client.home = tmp_path
    return client


def put(client, name, content=ROWS, **headers):
    return client.put(f"/studio/api/files/{name}", content=content, headers=BYTES | headers)


def files(client):
    folder = client.home / "files"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_a_file_arrives_byte_by_byte(client):
    content = bytes(range(256)) * 5000
    answer = put(client, "rows.jsonl", content)
    assert answer.status_code == 201
    assert answer.json() == {
        "name": "rows.jsonl", "bytes": len(content), "path": str(client.home / "files" / "rows.jsonl")
    }  # fmt: skip
    assert (client.home / "files" / "rows.jsonl").read_bytes() == content
    listed = client.get("/studio/api/files").json()
    assert [(one["name"], one["bytes"]) for one in listed["files"]] == [("rows.jsonl", len(content))]


def test_a_body_without_a_stated_length_arrives_too(client):
    assert put(client, "rows.csv", iter([b"a,b\n", b"1,2\n"])).json()["bytes"] == 8


def test_a_file_is_never_written_over(client):
    put(client, "rows.jsonl")
    answer = put(client, "rows.jsonl", b"other")
    assert answer.status_code == 409 and "already" in answer.json()["error"]["message"]
    assert (client.home / "files" / "rows.jsonl").read_bytes() == ROWS and files(client) == ["rows.jsonl"]


@pytest.mark.parametrize(
    "name",
    ["..%2Fx.jsonl", "%2e%2e%2fx.jsonl", "a%2Fb.jsonl", "a%5Cb.jsonl", ".jsonl", ".hidden.jsonl", "x",
     "x.exe", "x.pkl", "x.jsonl%00", "x.jsonl%0a", "-x.jsonl", "x.jsonl.", "é.jsonl", "a b.jsonl",
     "C:x.jsonl", f"{'x' * 200}.jsonl"],
)  # fmt: skip
def test_a_name_that_is_none_is_refused_and_nothing_is_written(client, name):
    answer = put(client, name)
    assert answer.status_code in (400, 404, 405) and files(client) == []
    assert [path.name for path in client.home.iterdir() if path.name != "files"] == []


def test_more_bytes_than_the_bound_are_refused_stated_or_not(client, monkeypatch):
    monkeypatch.setattr(uploads, "MOST", 1000)
    assert put(client, "a.jsonl", b"x" * 1001).status_code == 413
    assert put(client, "b.jsonl", iter([b"x" * 600, b"x" * 600])).status_code == 413
    assert put(client, "c.jsonl", b"x" * 1000).status_code == 201
    assert files(client) == ["c.jsonl"]


def test_only_bytes_are_taken(client):
    for kind in ("application/json", "text/plain", "multipart/form-data; boundary=x", ""):
        assert put(client, "a.jsonl", **{"Content-Type": kind}).status_code == 415
    assert files(client) == []


def test_an_empty_file_and_a_wrong_length_are_refused(client):
    assert put(client, "a.jsonl", b"").status_code == 400
    assert put(client, "b.jsonl", ROWS, **{"Content-Length": "x"}).status_code == 413
    assert files(client) == []


def test_a_full_disk_is_said_before_anything_is_written(client, monkeypatch):
    monkeypatch.setattr(uploads, "free_bytes", lambda folder: uploads.SPARE + 5)
    answer = put(client, "a.jsonl")
    assert answer.status_code == 413 and "too little room" in answer.json()["error"]["message"]
    assert files(client) == []


def test_whoever_comes_second_for_a_name_is_told_so(client, monkeypatch):
    folder = client.home / "files"
    named = uploads._named

    def later(part, path):
        path.write_bytes(b"another one")  # which had its name first
        named(part, path)

    monkeypatch.setattr(uploads, "_named", later)
    assert put(client, "a.jsonl").status_code == 409
    assert (folder / "a.jsonl").read_bytes() == b"another one" and files(client) == ["a.jsonl"]


def test_nothing_is_taken_without_the_token_of_the_pages(client):
    answer = put(client, "a.jsonl", **{"X-Graft-Token": "other"})
    assert answer.status_code == 403 and files(client) == []
