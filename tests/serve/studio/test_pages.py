"""The pages as they leave the server: whole, small, nothing inline, and a way on from every dead end."""

import re
from html.parser import HTMLParser
from importlib.resources import files

import pytest

pytest.importorskip("fastapi")
from fastapi.testclient import TestClient

from graft.serve.app import bare_app
from graft.serve.security import Keys
from graft.serve.studio.app import add_studio
from graft.serve.studio.pages import PAGES, add_missing, add_pages
from graft.serve.studio.state import Studio

POLICY = (
    "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)
WEB = files("graft.serve.studio").joinpath("web")
OURS = sorted(file.name for file in WEB.iterdir() if file.name.endswith((".js", ".css")))
PATHS = sorted(page.path.replace("{name}", "some-run") for page in PAGES)
DANGEROUS = re.compile(
    r"\.(?:inner|outer)HTML\b|insertAdjacentHTML|document\.write|\beval\(|new Function|\bsrcdoc\b|"
    r"createContextualFragment|setHTML"
)


class Found(HTMLParser):
    """What a document holds: its elements with their attributes, and the text inside scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.inline, self._in = [], "", None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._in = tag

    def handle_endtag(self, tag):
        self._in = None

    def handle_data(self, data):
        if self._in in ("script", "style"):
            self.inline += data.strip()


@pytest.fixture(scope="module")
def pages():
    """A client of pages with a model: none answers, and none is asked."""
    app = bare_app()
    add_pages(app, token="the-token", models=True)
    add_missing(app, models=True)
    return TestClient(app, base_url="http://127.0.0.1")


@pytest.fixture
def without_model(tmp_path):
    app = bare_app()
    add_studio(app, Studio(tmp_path, tmp_path / "votes.sqlite3"))
    return TestClient(app, base_url="http://127.0.0.1")


@pytest.mark.parametrize("path", [*PATHS, "/nowhere"])
def test_a_page_has_the_policy_and_nothing_inline(pages, path):
    answer = pages.get(f"/studio{path}")
    assert answer.status_code == (404 if path == "/nowhere" else 200)
    assert answer.headers["content-security-policy"] == POLICY
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store" and "set-cookie" not in answer.headers
    found = Found(answer.text)
    assert not found.inline and "style" not in {tag for tag, _ in found.elements}
    for tag, attributes in found.elements:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], (
            tag,
            attributes,
        )
        assert tag != "script" or attributes["src"].startswith("/studio/web/")
        for name in ("src", "href"):
            assert attributes.get(name, "/studio/").startswith(("/studio/", "#")), (tag, attributes)


@pytest.mark.parametrize("path", PATHS)
def test_a_page_loads_files_that_are_there(pages, path):
    found = Found(pages.get(f"/studio{path}").text)
    wanted = {a.get("src") or a.get("href") for t, a in found.elements if t in ("script", "link", "img")}
    assert wanted and all(pages.get(name).status_code == 200 for name in wanted)


def test_every_module_imports_files_of_its_own_folder():
    imported = re.compile(
        r'^(?:import|export[^;"]*\bfrom)\b[^;"(]*"([^"]+)"|\bimport\("([^"]+)"\)', re.MULTILINE
    )
    for name in OURS:
        if name.endswith(".js"):
            text = WEB.joinpath(name).read_text(encoding="utf-8")
            for source in map("".join, imported.findall(text)):
                assert source.startswith("./") and source[2:] in OURS, f"{name} imports {source}"
    assert imported.findall('import { a } from "./x.js";\nconst b = await import("./y.js");')


def test_no_module_makes_elements_of_text():
    for name in OURS:
        lines = [
            line
            for line in WEB.joinpath(name).read_text(encoding="utf-8").splitlines()
            if not line.lstrip().startswith(("//", "*", "/*"))
        ]
        assert not DANGEROUS.search("\n".join(lines)), name


def test_scripts_and_styles_without_the_charts_are_below_150_kb():
    assert sum(len(WEB.joinpath(name).read_bytes()) for name in OURS) < 150_000


def test_a_file_is_sent_again_only_when_it_has_changed(pages):
    first = pages.get("/studio/web/studio.js")
    assert first.headers["content-type"] == "text/javascript; charset=utf-8"
    again = pages.get("/studio/web/studio.js", headers={"If-None-Match": first.headers["etag"]})
    assert again.status_code == 304 and not again.content


@pytest.mark.parametrize(
    "name", ["../app.py", "..%2Fapp.py", "%2e%2e/app.py", "none.js", "studio.js%00", "."]
)
def test_a_name_that_is_no_file_of_the_pages_is_not_found(pages, name):
    assert pages.get(f"/studio/web/{name}").status_code == 404


def test_an_address_that_is_none_leads_back_to_the_pages(pages):
    page = pages.get("/studio/nowhere?q=<script>")
    assert page.status_code == 404 and 'href="/studio/runs"' in page.text and "<script>" not in page.text
    api = pages.get("/studio/api/nowhere")
    assert api.status_code == 404 and "no address" in api.json()["error"]["message"]
    assert pages.get("/", follow_redirects=False).headers["location"] == "/studio/runs"


def test_without_a_model_its_pages_say_how_to_start_one(without_model):
    for page in PAGES:
        answer = without_model.get(f"/studio{page.path}")
        assert answer.status_code == (404 if page.models else 200)
        assert ("graft studio MODEL" in answer.text) == page.models
        assert not page.models or f'href="/studio{page.path}"' not in answer.text
    asked = without_model.get("/studio/api/chat")
    assert asked.status_code == 409 and "graft studio MODEL" in asked.json()["error"]["message"]


def test_pages_hold_a_token_only_where_no_key_is_needed(tmp_path):
    found = {}
    for name, keys in {"open": Keys(), "with a key": Keys.of("key", None)}.items():
        app = bare_app(keys=keys)
        add_studio(app, Studio(tmp_path, tmp_path / "votes.sqlite3"))
        text = TestClient(app, base_url="http://127.0.0.1").get("/studio/runs").text
        found[name] = re.search('name="graft-token" content="([^"]*)"', text)[1]
    assert len(found["open"]) >= 40 and found["with a key"] == ""
