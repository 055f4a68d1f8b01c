"""Who may do what from a page (S7, S9, S17), by every route; and texts that would like to be scripts."""

import json
import shutil

import pytest

pytest.importorskip("fastapi")
from fastapi.testclient import TestClient
from payloads import PAYLOADS, injected
from served import write_adapters
from short_run import short_run, write_home
from studio_browser import REFUSED, chromium, until, visit
from studio_routes import guarded, role_of, routes_of
from studio_server import studio_server

import graft
from graft.models.load import load
from graft.serve.app import bare_app
from graft.serve.security import UPLOADS, Keys
from graft.serve.studio.app import add_studio
from graft.serve.studio.pages import PAGES
from graft.serve.studio.state import Studio

KEYS = Keys.of("looks", "changes")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder of two runs of four steps; the name of one of them would like to be an element."""
    home = tmp_path_factory.mktemp("home")
    write_home(home)
    runs = home / "runs"
    graft.run(short_run(home, runs / "plain"))
    shutil.copytree(runs / "plain", runs / "<img src=x onerror=xss=1>")
    return runs


@pytest.fixture(scope="module")
def opened(home):
    return studio(home, Keys())


@pytest.fixture(scope="module")
def locked(home):
    return studio(home, KEYS)


def studio(home, keys):
    """Return a client of a studio without a model."""
    app = bare_app(keys=keys)
    add_studio(app, Studio(home, home / "votes.sqlite3"))
    return TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False)


def test_every_route_declares_a_role_and_pages_alone_are_open(opened):
    routes = routes_of(opened.app)
    assert {role_of(route) for route in routes} <= {"open", "infer", "vote", "manage"}
    assert all(not route.path.startswith("/studio/api") for route in routes if role_of(route) == "open")
    changing = [route for route in routes if route.methods - {"GET", "HEAD"}]
    assert changing and {role_of(route) for route in changing} <= {"infer", "vote", "manage"}


def test_without_the_token_of_a_page_nothing_is_voted_nor_changed(opened):
    for method, path in guarded(opened.app, "vote", "manage"):
        for headers in ({}, {"X-Graft-Token": "wrong"}, {"Authorization": "Bearer wrong"}):
            answer = opened.request(method, path, headers=headers)
            assert answer.status_code == 403, (method, path, headers)
            assert answer.json()["error"]["code"] == "no_token"


def test_pages_of_others_and_other_hosts_are_refused_even_with_the_token(opened):
    token = {"X-Graft-Token": opened.app.state.token}
    for method, path in guarded(opened.app, "vote", "manage", "infer"):
        answer = opened.request(method, path, headers=token | {"Host": "evil.test"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "foreign_host"), (method, path)
        if method != "GET":
            for origin in ("http://evil.test", "null", "http://127.0.0.1.evil.test", "http://127.0.0.1:1"):
                answer = opened.request(method, path, headers=token | {"Origin": origin})
                code = answer.json()["error"]["code"]
                assert (answer.status_code, code) == (403, "foreign_origin"), (method, path, origin)


def test_a_form_of_another_site_cannot_be_a_request(opened):
    """Forms send three types of bodies, and none of them is JSON's."""
    token = {"X-Graft-Token": opened.app.state.token}
    for method, path in guarded(opened.app, "vote", "manage"):
        if method == "GET" or path.startswith(UPLOADS):  # files have any type; a form cannot send PUT
            assert method in ("GET", "PUT", "DELETE", "POST")
            continue
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
            answer = opened.request(method, path, content=b"{}", headers=token | {"Content-Type": kind})
            assert (answer.status_code, answer.json()["error"]["code"]) == (415, "not_json"), (method, path)


def test_a_server_with_keys_asks_for_the_key_of_the_role(locked):
    for name, given in {"none": None, "wrong": "wrong"}.items():
        headers = {} if given is None else {"Authorization": f"Bearer {given}"}
        for method, path in guarded(locked.app, "infer", "vote", "manage"):
            assert locked.request(method, path, headers=headers).status_code == 401, (name, method, path)
    for method, path in guarded(locked.app, "manage"):
        answer = locked.request(method, path, headers={"Authorization": "Bearer looks"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden"), (method, path)
    admin = {"Authorization": "Bearer changes"}
    answer = locked.post("/studio/api/chat/load", json={"name": "x"}, headers=admin)
    assert answer.json()["error"]["code"] == "no_model"  # past the gate


def test_no_answer_lets_other_sites_read_it(opened):
    for path in (
        "/studio/runs",
        "/studio/web/studio.js",
        *(path for _, path in guarded(opened.app, "infer")),
    ):
        with opened.stream("OPTIONS", path, headers={"Origin": "http://evil.test"}) as answer:
            assert not [name for name in answer.headers if name.startswith("access-control")], path


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.mark.slow
def test_a_page_of_another_site_can_neither_ask_nor_frame_the_studio(browser, home):
    with studio_server(home) as address:
        context = browser.new_context()
        page, answers = context.new_page(), []
        page.on("response", lambda answer: answers.append(answer) if address in answer.url else None)
        body = f"""<iframe src="{address}/studio/runs"></iframe><script>
          const ask = (options) => fetch("{address}/studio/api/chat/load", options).catch(() => null);
          Promise.all([ask({{method: "POST", mode: "no-cors", body: "{{}}"}}),
            ask({{method: "POST", headers: {{"Content-Type": "application/json"}}, body: "{{}}"}}),
            fetch("{address}/studio/runs").then(() => {{ window.read = true }}, () => null),
          ]).then(() => {{ window.done = true }});</script>"""
        context.route("http://evil.test/**", lambda route: route.fulfill(body=body, content_type="text/html"))
        page.goto("http://evil.test/")
        until(page, "window.done === true")
        assert page.evaluate("window.read") is None, "its token could be read"
        assert {answer.status for answer in answers if answer.request.method == "POST"} <= {403}
        frames = [frame for frame in page.frames if frame != page.main_frame]
        assert frames and all("Graft" not in frame.content() for frame in frames)
        context.close()


def spoilt(found, number=0):
    """Return JSON with payloads behind every text: no two after each other have the same ones."""
    if isinstance(found, str):
        return found + " ".join(PAYLOADS[(number * 8 + place) % len(PAYLOADS)] for place in range(8))
    if isinstance(found, list):
        return [spoilt(one, number + place) for place, one in enumerate(found)]
    if isinstance(found, dict):
        return {name: spoilt(one, number + place) for place, (name, one) in enumerate(found.items())}
    return found


def spoil(page, turn=0):
    """Let every text of every answer of the studio carry payloads on a page."""

    def answer(route):
        if route.request.url.endswith("/events"):  # a stream: it has no end
            return route.continue_()
        real = route.fetch()
        if "json" not in real.headers.get("content-type", ""):
            return route.fulfill(response=real)
        return route.fulfill(response=real, body=json.dumps(spoilt(real.json(), turn)))

    page.route("**/studio/api/**", answer)


@pytest.fixture(scope="module")
def answering(home):
    """The address of a studio whose base answers."""
    with studio_server(home, load("seedling", dtype="fp32")) as address:
        yield address


@pytest.mark.slow
@pytest.mark.parametrize("page_of", PAGES, ids=lambda page: page.script)
def test_text_of_the_server_stays_text_on_every_page(browser, answering, page_of):
    """Every text of every answer carries payloads. The policy that would stop scripts is switched off."""
    for turn in range(5):
        with visit(browser, answering, bypass_csp=True, expected=[""]) as page:
            spoil(page, turn)
            page.goto(f"/studio{page_of.path.replace('{name}', 'plain')}")
            page.wait_for_load_state("load")
            page.wait_for_timeout(300)
            assert not injected(page), f"turn {turn}"


def streamed(pieces):
    """Return a stream of a chat completion, each piece with a token of the same name."""
    events = [
        {"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None,
            "logprobs": {"content": [{"token": piece, "logprob": -0.1, "top_logprobs": [
                {"token": other, "logprob": -0.1} for other in (piece, *PAYLOADS[:3])]}]}}]}
        for piece in pieces
    ]  # fmt: skip
    events += [{"choices": [], "usage": {"completion_tokens": len(pieces)}}]
    return "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"


@pytest.mark.slow
def test_what_a_model_writes_stays_text(browser, answering):
    with visit(browser, answering, bypass_csp=True, expected=[REFUSED]) as page:
        spoil(page)
        body = streamed(PAYLOADS)
        page.route("**/v1/**", lambda route: route.fulfill(body=body, content_type="text/event-stream"))
        page.goto("/studio/chat")
        page.get_by_label("Your message").fill("".join(PAYLOADS))
        page.keyboard.press("Enter")
        page.get_by_text("The same tokens as").wait_for()
        for column in page.locator(".column").all():
            assert column.locator(".tokens").text_content() == "".join(PAYLOADS)
            assert column.locator(".turn.asked").text_content() == "".join(PAYLOADS)
        for place in (0, 12, 37):
            page.locator(".token").nth(place).hover()
            assert page.get_by_role("tooltip").locator("code").first.inner_text() == json.dumps(
                PAYLOADS[place]
            )
        page.get_by_text("Copy as API call").first.click()
        assert json.dumps(PAYLOADS[0])[1:-1] in page.get_by_role("dialog").inner_text()
        assert not injected(page)


@pytest.mark.slow
def test_what_looks_for_scripts_finds_them(browser):
    """The other way round: where a page takes texts for HTML, nearly all payloads are seen."""
    page = browser.new_page()
    seen = []
    for payload in PAYLOADS:
        page.set_content("<p></p>")
        page.evaluate("text => { delete window.xss; document.querySelector('p').innerHTML = text }", payload)
        seen.append(bool(injected(page)))
    page.close()
    assert len(PAYLOADS) == 40 and sum(seen) >= 36


@pytest.mark.slow
def test_prompts_reasons_and_tags_of_votes_stay_text(browser, tmp_path):
    arena_votes = pytest.importorskip("arena_votes")
    base = load("seedling", dtype="fp32")
    write_adapters(base, tmp_path, 2, scale=0.3)
    with studio_server(tmp_path, base) as address:
        arena = arena_votes.Arena(address)
        for place in range(0, len(PAYLOADS), 4):
            prompt, reason, *tags = PAYLOADS[place : place + 4]
            battle, _, _ = arena.fight(f"{place} {prompt}", max_tokens=4)
            answer = arena.vote(battle, "ab"[place // 4 % 2], reason=reason, tags=[tag[:40] for tag in tags])
            assert answer.status_code == 200, answer.text
        for path in ("/arena", "/leaderboard", "/preferences"):
            with visit(browser, address, bypass_csp=True, expected=[REFUSED]) as page:
                page.goto(f"/studio{path}")
                page.wait_for_load_state("networkidle")
                assert not injected(page)


def test_the_real_name_of_a_run_stays_text(browser, home):
    with studio_server(home) as address:
        for path in ("/studio/runs", "/studio/runs/%3Cimg%20src%3Dx%20onerror%3Dxss%3D1%3E"):
            with visit(browser, address, bypass_csp=True, expected=[REFUSED]) as page:
                page.goto(path)
                page.wait_for_load_state("load")
                assert not injected(page)
