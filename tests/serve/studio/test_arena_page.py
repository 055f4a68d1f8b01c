"""Arena, leaderboard and preferences as a browser shows them: by mouse, by keys, on a phone, in the dark."""

import re
from contextlib import contextmanager

import pytest

pytest.importorskip("uvicorn")
from arena_votes import battle, write_asking_run
from served import write_adapters
from studio_browser import chromium, findings, late, visit
from studio_server import studio_server

from graft.models.load import load
from graft.serve.studio import arena, feedback
from graft.serve.studio.votes import Votes

PAGES = ("arena", "leaderboard", "preferences")
EVIL = '<img src=x onerror="window.broken=1"><script>window.broken=1</script>'
LINES = "Both answers have ended. Vote with the keys 1 to 4"
LISTEN = """() => {
  const said = document.querySelector("main .said[role=status]");
  window.told = [];
  new MutationObserver(() => window.told.push(said.textContent)).observe(said, {childList: true});
}"""
LAST = {"leaderboard": "Places", "preferences": "The first pairs"}  # headings that come when all is there


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The address of a studio with a base, two adapters, a run whose rows ask, and forty votes."""
    home = tmp_path_factory.mktemp("home")
    base = load("seedling", dtype="fp32")
    names = write_adapters(base, home, 2)
    rows = [{"prompt": f"Describe number {i}.\n", "completion": "Well."} for i in range(5)]
    write_asking_run(home, rows)
    votes = Votes(home / "votes.sqlite3")
    for number in range(40):
        pair = [("liked", "plain"), (EVIL, "plain"), ("plain", "liked")][number % 3]
        answers = (f"{EVIL} {number}", f"Second {number}.")
        votes.keep(battle(f"battle-{number}", *pair, prompt=f"{EVIL} {number}", answers=answers))
        tags = ["style", EVIL[:40]] if number % 2 else ["length"]
        votes.vote(f"battle-{number}", "a" if number % 5 else "tie", key=f"key-{number}", tags=tags)
    votes.close()
    with studio_server(home, base) as address:
        yield address, home, names


@contextmanager
def at(browser, place, page, **settings):
    """Yield a page of the studio when it has loaded."""
    with visit(browser, place[0], **settings) as shown:
        shown.goto(f"/studio/{page}")
        shown.get_by_role("heading", level=1).wait_for()
        yield shown


def begin(shown, prompt="Describe a kettle.", tokens="12"):
    """Ask two models, and wait until one may vote."""
    shown.get_by_label("Prompt").fill(prompt)
    shown.locator("details.settings").evaluate("settings => { settings.open = true; }")
    shown.get_by_label("Longest answer").fill(tokens)
    shown.get_by_role("button", name="Ask two models").click()
    verdict(shown, "Tie").and_(shown.locator(":enabled")).wait_for()


def verdict(shown, words):
    return shown.get_by_role("group", name="Your verdict").get_by_role("button", name=words)


def counted(shown):
    """Return the last vote in the table that the server gives."""
    table = shown.request.get("/studio/api/votes.csv").text()
    return table.rstrip("\n").splitlines()[-1]


def test_keys_vote_and_only_then_names_are_shown(browser, place):
    with at(browser, place, "arena") as shown:
        shown.get_by_text("prompts of held-out rows").wait_for()
        begin(shown)
        before = shown.content()
        assert not [name for name in (*place[2], "seedling") if name in before]
        shown.locator("h1").click()
        shown.keyboard.press("2")
        shown.get_by_text(re.compile(r"You preferred \S+ \(B\) to \S+\.")).first.wait_for()
        named = shown.locator(".side h2").all_inner_texts()
        assert all(any(name in one for name in (*place[2], "seedling")) for one in named)
        shown.get_by_role("heading", name="So far").wait_for()
        assert ",b," in counted(shown)


def test_the_leaderboard_shows_places_intervals_and_a_warning(browser, place):
    with at(browser, place, "leaderboard") as shown:
        shown.get_by_role("heading", name="Places").wait_for()
        assert shown.locator(".places .range").count() >= 3
        assert "Fewer than 30 votes" in shown.get_by_role("main").inner_text()
        assert shown.evaluate("window.broken") is None


@pytest.mark.slow
def test_no_byte_before_the_vote_names_a_model(browser, place):
    with visit(browser, place[0]) as shown:
        told = []

        def record(route):
            answer = route.fetch()
            told.append(answer.body())
            route.fulfill(response=answer)

        shown.route("**/*", record)
        shown.goto("/studio/arena")
        shown.get_by_text("prompts of held-out rows").wait_for()
        begin(shown)
        everything = b"".join(told)
        assert b'"ready":true' in everything
        assert not [name for name in (*place[2], "seedling") if name.encode() in everything]


@pytest.mark.slow
def test_a_reason_and_tags_go_with_the_vote(browser, place):
    with at(browser, place, "arena") as shown:
        begin(shown)
        shown.get_by_label("Why").fill("It keeps to the point, =1+1")
        shown.get_by_role("group", name="Tags").get_by_role("button", name="correct").click()
        shown.get_by_label("Another tag").fill("funny")
        shown.keyboard.press("Enter")
        verdict(shown, "A is better").click()
        shown.get_by_text("You preferred").first.wait_for()
        assert "It keeps to the point" in counted(shown) and "correct funny" in counted(shown)


@pytest.mark.slow
def test_a_vote_is_undone_by_its_button(browser, place):
    with at(browser, place, "arena") as shown:
        begin(shown)
        verdict(shown, "Both bad").click()
        shown.get_by_role("button", name=re.compile("Undo")).click()
        shown.get_by_text("counts nowhere").wait_for()
        assert ",False,True,False" in counted(shown)
        shown.get_by_role("button", name="Ask the same again").click()
        verdict(shown, "Tie").and_(shown.locator(":enabled")).wait_for()


@pytest.mark.slow
def test_the_countdown_of_undo_ends(browser, place):
    with visit(browser, place[0]) as shown:
        shown.clock.install()
        shown.goto("/studio/arena")
        shown.get_by_text("prompts of held-out rows").wait_for()
        begin(shown)
        verdict(shown, "Tie").click()
        undo = shown.get_by_role("button", name=re.compile("Undo"))
        undo.wait_for()
        shown.clock.run_for(4_000)
        assert undo.inner_text() == "Undo (6 s)"
        shown.clock.run_for(8_000)
        undo.wait_for(state="detached")


@pytest.mark.slow
def test_everything_goes_by_keys_alone(browser, place):
    with at(browser, place, "arena") as shown:
        shown.get_by_text("prompts of held-out rows").wait_for()
        shown.get_by_label("Prompt").focus()
        shown.keyboard.press("Control+Enter")
        verdict(shown, "Tie").and_(shown.locator(":enabled")).wait_for()
        shown.keyboard.press("1")  # typed into the prompt, which has the focus: no vote
        assert verdict(shown, "Tie").is_enabled()
        for _ in range(30):
            shown.keyboard.press("Tab")
            if verdict(shown, "Tie").evaluate("button => button === document.activeElement"):
                break
        shown.keyboard.press("Enter")
        shown.get_by_text("A tie").first.wait_for()
        shown.keyboard.press("u")
        shown.get_by_text("counts nowhere").wait_for()


@pytest.mark.slow
def test_the_end_of_each_answer_is_told_to_those_who_listen(browser, place):
    with at(browser, place, "arena") as shown:
        shown.evaluate(LISTEN)
        begin(shown)
        told = shown.evaluate("window.told")
        assert LINES in told[-1]
        verdict(shown, "A is better").click()
        shown.get_by_text("You preferred").first.wait_for()
        assert "You preferred" in shown.evaluate("window.told").pop()


@pytest.mark.slow
def test_a_refusal_is_said_and_the_page_goes_on(browser, place):
    with at(browser, place, "arena", expected=("400",)) as shown:
        shown.get_by_label("Prompt").fill("word " * 3_000)
        shown.get_by_role("button", name="Ask two models").click()
        shown.get_by_role("alert").wait_for()
        begin(shown)


@pytest.mark.slow
@pytest.mark.parametrize("asked_for", [False, True])
def test_a_prompt_that_is_drawn_late_does_not_replace_what_was_typed(browser, place, asked_for):
    held = []
    with visit(browser, place[0]) as shown:
        shown.route("**/prompts/next", lambda route: held.append(route))
        shown.goto("/studio/arena")
        prompt = shown.get_by_label("Prompt")
        if asked_for:
            prompt.wait_for()
            while not held:
                shown.wait_for_timeout(20)
            with shown.expect_response("**/prompts/next"):
                held.pop().continue_()
            shown.get_by_text("of held-out rows").wait_for()
            shown.get_by_role("button", name="Draw a prompt").click()
        while not held:
            shown.wait_for_timeout(20)
        prompt.fill("My own words.")
        with shown.expect_response("**/prompts/next"):
            held.pop().continue_()
        shown.wait_for_timeout(200)
        assert prompt.input_value() == "My own words."
        assert not shown.get_by_text("of held-out rows").is_visible()


@pytest.mark.slow
def test_chosen_models_meet_without_being_named(browser, place):
    models = "&".join(f"models={name}" for name in place[2])
    with at(browser, place, f"arena?{models}") as shown:
        shown.get_by_text("Two of the 2 models that you chose answer").wait_for()
        begin(shown)
        assert not [name for name in place[2] if name in shown.locator("main").inner_text()]
        verdict(shown, "A is better").click()
        shown.get_by_text("You preferred").first.wait_for()
        shown.locator(".side h2").first.wait_for()
        assert sorted(one.split()[-1] for one in shown.locator(".side h2").all_inner_texts()) == sorted(
            place[2]
        )


@pytest.mark.slow
def test_an_answer_that_names_a_model_is_told_before_the_vote(browser, place, monkeypatch):
    monkeypatch.setattr(arena, "names_one", lambda text, names: True)
    with at(browser, place, "arena") as shown:
        begin(shown)
        shown.get_by_text("An answer names a model").wait_for()


@pytest.mark.slow
def test_a_tag_chooses_votes_and_tables_are_saved(browser, place):
    with at(browser, place, "leaderboard") as shown:
        shown.get_by_role("heading", name="Places").wait_for()
        tile = shown.locator(".tiles dd").first
        every = int(tile.inner_text())
        shown.get_by_label("Votes with the tag").select_option("length")
        shown.wait_for_function(
            "every => Number(document.querySelector('.tiles dd').textContent) < every", arg=every
        )
        with shown.expect_download() as saved:
            shown.get_by_role("button", name="Votes as CSV").click()
        assert saved.value.suggested_filename == "votes.csv"


@pytest.mark.slow
def test_chosen_places_lead_to_the_arena(browser, place):
    with at(browser, place, "leaderboard") as shown:
        link = shown.get_by_role("link", name="Vote between the chosen")
        assert link.get_attribute("href") is None
        for name in ("liked", "plain"):
            shown.get_by_label(f"Choose {name}", exact=True).check()
        assert sorted(re.findall("models=([a-z]+)", link.get_attribute("href"))) == ["liked", "plain"]


@pytest.mark.slow
def test_an_empty_leaderboard_says_what_to_do(browser, tmp_path):
    with studio_server(tmp_path) as address, visit(browser, address) as shown:
        shown.goto("/studio/leaderboard")
        shown.get_by_text("No vote counts yet").wait_for()


@pytest.mark.slow
def test_a_preview_follows_the_settings_and_nothing_in_it_is_run(browser, place):
    with at(browser, place, "preferences") as shown:
        shown.get_by_role("heading", name="The first pairs").wait_for()
        assert shown.locator(".pair").count() >= 4
        assert "a tie prefers no answer" in shown.locator("main").inner_text()
        shown.get_by_label("What is learnt from").select_option("kto")
        shown.get_by_role("heading", name="The first answers").wait_for()
        assert shown.evaluate("window.broken") is None
        assert shown.locator("main img, main script").count() == 0


@pytest.mark.slow
def test_one_click_starts_a_run_and_leads_to_it(browser, place, monkeypatch):
    started = []
    monkeypatch.setattr(feedback, "start", lambda *given: started.append(given))
    with at(browser, place, "preferences") as shown:
        shown.get_by_role("heading", name="The first pairs").wait_for()
        shown.get_by_label("Name of the run").fill("from-the-page")
        shown.get_by_role("button", name="Write the rows and start the run").click()
        link = shown.get_by_role("link", name="See how it learns")
        link.wait_for()
        assert link.get_attribute("href") == "/studio/runs/from-the-page"
        assert started[0][2] == "from-the-page" and started[0][1]["train"]["lr"] == 5e-4


@pytest.mark.slow
def test_a_name_that_is_taken_is_told_at_its_field(browser, place):
    with at(browser, place, "preferences", expected=("409",)) as shown:
        shown.get_by_role("heading", name="The first pairs").wait_for()
        name = shown.get_by_label("Name of the run")
        name.fill("asks")
        shown.get_by_role("button", name="Write the rows and start the run").click()
        shown.get_by_text("choose another name").wait_for()
        assert name.get_attribute("aria-invalid") == "true"
        assert name.evaluate("field => field === document.activeElement")


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_pages_are_accessible(browser, place, name, scheme):
    with at(browser, place, name, scheme=scheme) as shown:
        _filled(shown, name)
        assert findings(shown) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGES)
def test_pages_fit_a_phone(browser, place, name):
    with at(browser, place, name, width=390) as shown:
        _filled(shown, name)
        assert late(shown) == []


def _filled(shown, name):
    """Bring a page to where everything is on it."""
    if name == "arena":
        begin(shown)
        verdict(shown, "A is better").click()
        shown.get_by_role("heading", name="So far").wait_for()
    else:
        shown.get_by_role(
            "heading", name={"leaderboard": "Places", "preferences": "The first pairs"}[name]
        ).wait_for()
