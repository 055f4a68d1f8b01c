"""The studio's chat in Chromium: columns, keys, tokens, errors, and a server that goes and comes back."""

import itertools
import json
import subprocess
import sys
import threading

import pytest

pytest.importorskip("fastapi")
from served import write_adapters
from studio_browser import REFUSED, chromium, late, until, visit
from studio_server import studio_server

from graft.generate.engine import Engine
from graft.models.load import load
from graft.serve.security import Keys

slow = pytest.mark.slow
PAIR = "/studio/chat?model=seedling&model=lora-0"


@pytest.fixture(scope="module")
def base():
    return load("seedling", dtype="fp32")


@pytest.fixture
def another():
    """A base of its own: two servers would give their adapters the same names on one."""
    return load("seedling", dtype="fp32")


@pytest.fixture(scope="module")
def home(base, tmp_path_factory):
    """A folder with two adapters whose answers are not those of the base."""
    home = tmp_path_factory.mktemp("home")
    write_adapters(base, home, 2, scale=0.3)
    return home


@pytest.fixture(scope="module")
def address(home, base):
    with studio_server(home, base) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture
def chat(browser, address):
    """The page with two columns: the base, and lora-0."""
    with visit(browser, address) as page:
        yield opened(page)


def opened(page, path=PAIR, form="chat"):
    """Open the page. form: how it asks; the seedling, which has no chat template, is asked for texts else."""
    page.goto(path)
    page.locator(".column").first.wait_for()
    set_to(page)
    page.get_by_label("How to ask").select_option(form)
    page.get_by_label("Your message").focus()
    return page


def set_to(page, **values):
    """Set settings of all columns, which are in a part that opens."""
    if not page.locator(".settings").evaluate("part => part.open"):
        page.get_by_text("Settings of all columns").click()
    for name, value in values.items():
        page.locator(f"#{name}").fill(str(value))


def ask(page, text="Write about a kettle.", columns=2, **settings):
    """Ask, and wait until every column has ended."""
    set_to(page, **{"warmth": 0, "longest": 12} | settings)
    page.get_by_label("Your message").fill(text)
    page.get_by_role("button", name="Send").click()
    ended(page, columns)


def ended(page, columns=2):
    until(
        page,
        "count => document.querySelectorAll('.column').length === count"
        " && !document.querySelector('.writing') && document.querySelector('.ask .bad').disabled",
        columns,
    )


def answers(page):
    """The latest answer of each column."""
    return [column.locator(".tokens").last.text_content() for column in page.locator(".column").all()]


def sent(page, path="/v1/chat/completions"):
    """Collect the bodies of the requests for answers from now on."""
    bodies = []
    page.on("request", lambda r: bodies.append(json.loads(r.post_data)) if r.url.endswith(path) else None)
    return bodies


def test_one_prompt_is_answered_in_every_column(chat, base):
    bodies = sent(chat)
    ask(chat, seed=7, longest=24)
    assert sorted(body["model"] for body in bodies) == ["lora-0", "seedling"]
    assert {(body["seed"], body["temperature"], body["max_tokens"]) for body in bodies} == {(7, 0, 24)}
    want = base.complete([[{"role": "user", "content": "Write about a kettle."}]], [None], max_new_tokens=24)[
        0
    ]
    first, second = answers(chat)
    assert first == want.text and second != first
    figures = chat.locator(".figures").first.inner_text()
    assert f"{len(want.tokens)} tokens" in figures and "first token after" in figures
    parting = chat.locator(".column").nth(1).locator(".parts").inner_text()
    assert parting.startswith("Parts from seedling at token")
    assert chat.locator(".column").nth(1).locator(".token.parting").count() == 1


def test_keys_alone_ask_and_walk_through_tokens(chat):
    chat.reload()
    box = chat.get_by_label("Your message")
    until(chat, "document.activeElement.id === 'words'")  # one can type at once
    chat.keyboard.type("First line")
    chat.keyboard.press("Shift+Enter")
    chat.keyboard.type("second line")
    assert box.input_value() == "First line\nsecond line"
    set_to(chat, warmth=0, longest=6)
    box.focus()
    chat.keyboard.press("Enter")
    ended(chat)
    assert box.input_value() == ""
    tokens = chat.locator(".column").first.locator(".tokens")
    tokens.focus()
    chat.keyboard.press("ArrowRight")
    chat.keyboard.press("ArrowRight")
    chat.keyboard.press("ArrowLeft")
    focused = chat.evaluate("document.activeElement.textContent")
    assert focused == tokens.locator(".token").first.text_content()
    tip = chat.get_by_role("tooltip")
    assert json.dumps(focused, ensure_ascii=False) in tip.inner_text() and " %" in tip.inner_text()
    chances = [
        float(text.rstrip(" %"))
        for text in tip.locator("li span:last-child").all_inner_texts()
        if "<" not in text
    ]
    assert chances == sorted(chances, reverse=True) and sum(chances) <= 100.5
    assert chat.evaluate("document.activeElement.getAttribute('aria-describedby')") == "token-tip"
    chat.keyboard.press("Escape")
    assert not tip.is_visible() and tokens.evaluate("part => part === document.activeElement")


@slow
def test_a_pointer_shows_what_a_token_was_worth(chat):
    ask(chat)
    chat.locator(".token").nth(2).hover()
    assert chat.get_by_role("tooltip").is_visible()
    chat.get_by_role("heading", name="Chat").hover()
    assert not chat.get_by_role("tooltip").is_visible()


@slow
def test_the_same_model_twice_writes_the_same_tokens(browser, address):
    with visit(browser, address) as page:
        opened(page, "/studio/chat?model=lora-0&model=lora-0")
        ask(page, warmth=1, seed=3)
        first, second = answers(page)
        assert first == second and page.locator(".token.apart").count() == 0
        assert page.locator(".parts").last.inner_text() == "The same tokens as lora-0"


@slow
@pytest.mark.parametrize("by", ["button", "key"])
def test_stop_ends_every_column_and_what_was_written_stays(chat, monkeypatch, by):
    begun, steps, stopped = [], itertools.count(), threading.Event()

    def noted(engine, request, submit=Engine.submit):
        begun.append(request)
        return submit(engine, request)

    def held(engine, step=Engine.step):
        """Write ten tokens of both, then wait for the stop: no answer ends before it."""
        if len(begun) < 2:
            stopped.wait(0.3)
        elif next(steps) >= 10:
            stopped.wait(60)
        return step(engine)

    monkeypatch.setattr(Engine, "submit", noted)
    monkeypatch.setattr(Engine, "step", held)
    set_to(chat, warmth=0, longest=300)
    chat.get_by_label("Your message").fill("Write about a kettle.")
    chat.get_by_role("button", name="Send").click()
    for column in range(2):
        chat.locator(".column").nth(column).locator(".token").nth(2).wait_for()
    if by == "button":
        chat.get_by_role("button", name="Stop").click()
    else:
        chat.keyboard.press("Escape")
    ended(chat)
    stopped.set()
    assert all("stopped" in text for text in chat.locator(".figures").all_inner_texts())
    assert all(answers(chat))
    ask(chat, "And a spoon?")
    assert chat.locator(".turn.asked").count() == 4


@slow
def test_each_column_keeps_its_own_conversation(chat):
    ask(chat)
    first = answers(chat)
    bodies = sent(chat)
    ask(chat, "And a spoon?", system="Be short.")
    told = {body["model"]: body["messages"] for body in bodies}
    for name, said in zip(("seedling", "lora-0"), first, strict=True):
        assert [turn["role"] for turn in told[name]] == ["system", "user", "assistant", "user"]
        assert told[name][2]["content"] == said and told[name][3]["content"] == "And a spoon?"
    chat.get_by_role("button", name="New conversation").click()
    assert chat.locator(".turn").count() == 0
    bodies.clear()
    ask(chat, "Again.", system="")
    assert all(len(body["messages"]) == 1 for body in bodies)


@slow
def test_one_to_four_columns_which_the_address_keeps(chat):
    add = chat.get_by_role("button", name="Add a column")
    add.click()
    add.click()
    assert chat.locator(".column").count() == 4 and add.is_disabled()
    chat.get_by_role("button", name="Remove the column of lora-0").click()
    chat.locator(".column select").last.select_option("dora-1")
    chat.reload()
    chat.locator(".column").nth(2).wait_for()
    chosen = [select.input_value() for select in chat.locator(".column select").all()]
    assert len(chosen) == 3 and chosen[0] == "seedling" and chosen[-1] == "dora-1" and "lora-0" not in chosen
    for _ in range(2):
        chat.locator(".close:visible").last.click()
    assert chat.locator(".column").count() == 1 and chat.locator(".close:visible").count() == 0


@slow
def test_an_error_stands_in_its_column_and_can_be_tried_again(browser, address):
    with visit(browser, address, expected=[REFUSED]) as page:
        opened(page)
        refusal = {"error": {"message": "a kettle <b>fell</b>", "type": "x", "param": None, "code": None}}

        def answer(route):
            if '"lora-0"' in route.request.post_data:
                route.fulfill(status=503, json=refusal)
            else:
                route.continue_()

        page.route("**/v1/chat/completions", answer)
        ask(page)
        column = page.locator(".column").nth(1)
        assert column.get_by_role("alert").inner_text() == "a kettle <b>fell</b>"
        assert page.locator(".column").first.locator(".tokens").inner_text()
        page.unroute("**/v1/chat/completions")
        column.get_by_role("button", name="Try again").click()
        ended(page)
        assert column.locator(".tokens").inner_text() and column.get_by_role("alert").count() == 0
        assert "Parts from seedling" in column.locator(".parts").inner_text()


@slow
def test_an_adapter_that_was_replaced_is_loaded_as_it_is_now(browser, another, tmp_path):
    write_adapters(another, tmp_path, 1, scale=0.3)
    with studio_server(tmp_path, another) as address, visit(browser, address, expected=[REFUSED]) as page:
        write_adapters(another, tmp_path, 1, scale=0.2)
        opened(page)
        ask(page)
        column = page.locator(".column").nth(1)
        assert "changed" in column.get_by_role("alert").inner_text()
        column.get_by_role("button", name="Load it as it is now").click()
        column.get_by_text("Adapter: lora").wait_for()
        ask(page)
        assert column.locator(".tokens").inner_text()


@slow
def test_a_run_that_has_finished_since_is_offered_and_loaded(browser, another, tmp_path):
    with studio_server(tmp_path, another) as address, visit(browser, address) as page:
        write_adapters(another, tmp_path, 1, scale=0.3)
        opened(page, "/studio/chat")
        assert page.locator(".column").count() == 1, "what is not loaded is not asked"
        page.get_by_role("button", name="Add a column").click()
        page.locator(".column select").last.select_option(label="lora-0 (load it)")
        page.locator(".column").nth(1).get_by_text("Adapter: lora").wait_for()
        ask(page)
        assert len(set(answers(page))) == 2


@slow
def test_the_copied_call_gives_the_same_answer(browser, address, tmp_path):
    pytest.importorskip("openai")
    with visit(browser, address, permissions=["clipboard-read", "clipboard-write"]) as page:
        opened(page)
        ask(page, 'It\'s a "kettle" — what\nis it for?', seed=5, warmth=0.8)
        answer = answers(page)[1]
        page.get_by_role("button", name="Copy as API call to lora-0").click()
        for place, command in enumerate((["sh"], [sys.executable])):
            page.get_by_role("button", name="Copy", exact=True).nth(place).click()
            script = tmp_path / f"call-{place}"
            script.write_text(page.evaluate("navigator.clipboard.readText()"), encoding="utf-8")
            done = subprocess.run([*command, script], capture_output=True, text=True, timeout=120, check=True)
            said = json.loads(done.stdout)["choices"][0]["message"]["content"] if place == 0 else done.stdout
            assert said.strip() == answer.strip()
        page.keyboard.press("Escape")
        assert page.get_by_role("dialog").count() == 0


@slow
def test_a_model_without_a_chat_template_continues_texts(browser, base, address):
    with visit(browser, address) as page:
        opened(page, form="text")
        assert page.get_by_text("no chat template of its own: each column continues its text").is_visible()
        bodies = sent(page, "/v1/completions")
        ask(page, "The kettle")
        want = base.complete(["The kettle"], [None], max_new_tokens=12)[0].text
        assert page.locator(".tokens").first.text_content() == want
        ask(page, " and")
        prompts = {body["model"]: body["prompt"] for body in bodies}
        assert prompts["seedling"] == f"The kettle{want} and"


@slow
def test_a_server_with_keys_asks_once_and_says_when_a_key_is_wrong(browser, another, home):
    keys = Keys.of("looks", "changes")
    with studio_server(home, another, keys) as address, visit(browser, address, expected=[REFUSED]) as page:
        page.goto(PAIR)
        dialog = page.get_by_role("dialog")
        page.locator("#key").fill("wrong")
        page.keyboard.press("Enter")
        dialog.get_by_text("That key is not known here.").wait_for()
        page.locator("#key").fill("looks")
        dialog.get_by_role("button", name="Go on").click()
        page.locator(".column").nth(1).wait_for()
        assert dialog.count() == 0
        ask(page)
        page.get_by_role("button", name="Copy as API call to lora-0").click()
        text = page.get_by_role("dialog").inner_text()
        assert "$GRAFT_API_KEY" in text and "looks" not in text
        assert "looks" not in page.content() and page.evaluate("document.cookie") == ""


@slow
def test_who_gives_no_key_is_told_and_can_try_again(browser, another, home):
    keys = Keys.of("looks", None)
    with studio_server(home, another, keys) as address, visit(browser, address, expected=[REFUSED]) as page:
        page.goto(PAIR)
        page.get_by_role("button", name="Not now").click()
        assert "no API key was given" in page.get_by_role("alert").inner_text()
        page.get_by_role("button", name="Try again").click()
        page.locator("#key").fill("looks")
        page.keyboard.press("Enter")
        page.locator(".column").first.wait_for()


@slow
def test_a_server_that_stops_is_told_and_the_page_goes_on_when_it_is_back(browser, another, home):
    with studio_server(home, another) as address:
        port = int(address.rpartition(":")[2])
        page_of = visit(browser, address, expected=[REFUSED, "ERR_", "did before"])
        page = page_of.__enter__()
        opened(page)
        ask(page)
    page.get_by_label("Your message").fill("Are you there?")
    page.get_by_role("button", name="Send").click()
    ended(page)
    bar = page.get_by_text("The server does not answer.").first
    assert bar.is_visible()
    page.get_by_label("Your message").fill("kept")
    for name in list(another.adapters):
        another.detach(name)
    with studio_server(home, another, port=port):
        page.get_by_text("The server answers again.").wait_for()
        assert (
            page.locator(".lost").count() == 0 and page.get_by_label("Your message").input_value() == "kept"
        )
        token = page.locator("meta[name=graft-token]").get_attribute("content")
        for column in page.locator(".column").all():
            column.get_by_role("button", name="Try again").click()
        ended(page)
        assert all(answers(page)) and len(token) >= 40
        page_of.__exit__(None, None, None)


@slow
@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_a_narrow_page_fits_and_can_be_used(browser, address, scheme):
    with visit(browser, address, width=390, scheme=scheme) as page:
        opened(page)
        ask(page)
        assert not late(page) and all(answers(page))
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, ground[4:-1].split(","))) < 200) == (scheme == "dark")
        assert page.get_by_role("button", name="Send").is_visible()
        assert page.get_by_label("Your message").is_visible()


@slow
def test_settings_that_cannot_be_are_shown_where_they_stand(chat):
    bodies = sent(chat)
    set_to(chat, warmth=9)
    chat.get_by_text("Settings of all columns").click()
    chat.get_by_label("Your message").fill("Hello")
    chat.keyboard.press("Enter")
    until(chat, "document.activeElement.id === 'warmth'")
    assert not bodies and chat.locator("#warmth").is_visible()
    assert chat.get_by_label("Your message").input_value() == "Hello"


@slow
def test_unknown_models_in_the_address_are_named(browser, address):
    with visit(browser, address) as page:
        opened(page, "/studio/chat?model=nobody&model=dora-1")
        assert page.get_by_text("No such model: nobody.").is_visible()
        assert page.locator(".column select").first.input_value() == "dora-1"
