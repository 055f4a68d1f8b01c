"""The pages of runs in a real browser: the list, several side by side, one as it goes."""

import contextlib
import os
import signal
import sys
from pathlib import Path

import pytest

pytest.importorskip("uvicorn")
import stand_in_run
from report_folder import write_run
from studio_browser import chromium, findings, late, until, visit
from studio_server import studio_server

from graft.serve.studio import processes
from graft.serve.studio.processes import jobs, start
from graft.storage import commit, write

RECIPE = {"model": "seedling", "data": {"train": "seedling:descriptions"}}
HOSTILE = "<img src=x onerror=alert(1)>.jsonl"
SAMPLES = "".join(f"## step {n}\n\nWhat is a kettle?\n\nIt <b>boils</b> {n}.\n\n---\n\n" for n in (4, 8, 12))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("runs")
    write_run(home / "bare", steps=40)
    write_run(home / "wide", steps=400, method={"name": "lora", "r": 32})
    shown = write_run(home / "shown", train={"samples": ["What is a kettle?"], "epochs": 2, "batch_size": 8})
    (shown / "samples.md").write_text(SAMPLES)
    (shown / "report.html").write_text("<title>A report</title>")
    commit(shown / "checkpoints" / "step-000012", lambda folder: write(folder / "state", b"abc"))
    write_run(home / "hostile", data={"train": f"/rows/{HOSTILE}"})
    return home


@pytest.fixture(scope="module")
def address(home):
    kept = processes.PROGRAM
    processes.PROGRAM = (sys.executable, stand_in_run.__file__)
    with studio_server(home) as address:
        yield address
    processes.PROGRAM = kept
    for job in jobs(home).values():
        if job.lives:
            os.kill(job.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture
def page(browser, address):
    with visit(browser, address) as page:
        yield page


@contextlib.contextmanager
def at_work(home, name):
    """A run that writes steps, until the block ends."""
    start(home, RECIPE, name)
    try:
        yield
    finally:
        if (job := jobs(home)[name]).lives:
            with contextlib.suppress(ProcessLookupError):
                os.kill(job.pid, signal.SIGKILL)


def names(page):
    return page.locator("table.runs tbody th a").all_inner_texts()


def tile(page, title):
    return page.locator(".tiles > div", has=page.get_by_text(title, exact=True)).locator("dd").inner_text()


def state(page, wanted, timeout_s=60):
    until(
        page, "wanted => document.querySelector('.title .badge')?.textContent === wanted", wanted, timeout_s
    )


def test_runs_are_listed_and_found_by_their_words(page):
    page.goto("/studio/runs")
    page.get_by_role("link", name="wide").wait_for()
    assert set(names(page)) >= {"bare", "wide", "shown", "hostile"}
    page.get_by_label("Find").fill("lora 32 WIDE")
    assert names(page) == ["wide"]
    assert page.get_by_text("1 of").is_visible() and page.locator("svg.spark polyline").count() == 1


def test_a_run_shows_its_curves_and_what_its_folder_says(page):
    page.goto("/studio/runs/shown")
    page.locator("#curves canvas").first.wait_for()
    assert page.locator("#curves figcaption strong").all_inner_texts()[:1] == ["Loss"]
    page.get_by_text("It <b>boils</b> 12.").wait_for()
    assert tile(page, "Step") == "12 / 12"
    for part in (
        "rows.jsonl:7",
        "empty answer",
        "the loss rose",
        "data.max_length is 64 here",
        "whole",
        "torch 2.8.0",
    ):
        assert page.get_by_text(part).first.is_visible(), part


@pytest.mark.slow
def test_runs_are_found_by_their_state(page):
    page.goto("/studio/runs")
    page.get_by_role("link", name="wide").wait_for()
    page.get_by_label("State").select_option("damaged")
    page.get_by_text("No run is like that.").wait_for()
    page.get_by_role("button", name="Show all").click()
    assert "wide" in names(page)


@pytest.mark.slow
def test_two_runs_stand_side_by_side_and_are_saved(page):
    page.goto("/studio/runs")
    page.get_by_label("Compare bare").check()
    assert page.get_by_role("button", name="Compare", exact=True).is_disabled()
    page.get_by_label("Compare wide").check()
    page.get_by_role("link", name="Compare", exact=True).click()
    page.locator("figure canvas").wait_for()
    row = page.locator("table.side tr", has_text="method.r")
    assert row.locator("td").all_inner_texts() == ["4", "32"]
    with page.expect_download() as told:
        page.get_by_role("button", name="Save as CSV").click()
    saved = Path(told.value.path()).read_text().splitlines()
    assert saved[0].startswith("run,method.r,") and saved[1].startswith("bare,4,")


@pytest.mark.slow
def test_runs_are_compared_without_a_mouse(page):
    page.goto("/studio/runs")
    for name in ("bare", "wide"):
        page.get_by_label(f"Compare {name}").focus()
        page.keyboard.press("Space")
    page.get_by_role("link", name="Compare", exact=True).focus()
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="2 runs side by side").wait_for()


@pytest.mark.slow
def test_a_run_is_seen_while_it_goes_and_is_stopped_and_continued(page, home):
    with at_work(home, "goes"):
        page.goto("/studio/runs/goes")
        state(page, "running")
        seen = "() => +document.querySelector('.tiles dd').textContent.split(' / ')[0].replace(',', '')"
        first = page.evaluate(seen)
        until(page, f"first => ({seen})() > first + 10", first)
        drawn = page.evaluate("document.querySelectorAll('#curves canvas').length")
        assert drawn >= 3
        page.get_by_role("button", name="Stop", exact=True).click()
        page.get_by_role("button", name="Stop it").click()
        state(page, "stopped")
        page.get_by_text("whole", exact=True).wait_for()
        stopped = page.evaluate(seen)
        page.get_by_role("button", name="Continue").click()
        state(page, "running")
        until(page, f"first => ({seen})() > first + 5", stopped)
        page.get_by_text(f"Continued from step {stopped}").wait_for()


@pytest.mark.slow
def test_the_curves_of_a_run_that_goes_miss_no_step(page, home):
    with at_work(home, "whole"):
        asked = []
        page.on("response", lambda answer: asked.append(answer) if "/curves" in answer.url else None)
        page.goto("/studio/runs/whole")
        until(page, "() => +document.querySelector('.tiles dd')?.textContent.split(' / ')[0] > 60")
        steps = [step for answer in list(asked) for step in answer.json()["series"].get("loss", [[]])[0]]
        assert len(asked) > 3 and steps == list(range(1, len(steps) + 1))


@pytest.mark.slow
def test_a_run_is_killed_only_by_those_who_mean_it(page, home):
    with at_work(home, "killed"):
        page.goto("/studio/runs/killed")
        state(page, "running")
        page.get_by_role("button", name="Kill", exact=True).click()
        page.get_by_role("button", name="Let it run").click()
        page.wait_for_timeout(300)
        assert jobs(home)["killed"].lives
        page.get_by_role("button", name="Kill", exact=True).click()
        page.get_by_role("button", name="Kill it").click()
        state(page, "stopped")
        assert not jobs(home)["killed"].lives


@pytest.mark.slow
def test_a_run_that_fails_at_once_shows_why(page, home, monkeypatch):
    program = (sys.executable, "-c", "raise SystemExit('graft: error: no room for the base')")
    monkeypatch.setattr(processes, "PROGRAM", program)
    start(home, RECIPE, "fails")
    page.goto("/studio/runs/fails")
    state(page, "failed")
    assert page.locator("pre.log").inner_text().strip() == "graft: error: no room for the base"


@pytest.mark.slow
def test_a_part_of_the_curves_is_enlarged_and_all_is_shown_again(page):
    page.goto("/studio/runs/wide")
    page.locator("#curves canvas").first.wait_for()
    with page.expect_response(lambda answer: "from=100" in answer.url and "to=200" in answer.url) as told:
        page.locator("#from").fill("100")
        page.locator("#to").fill("200")
        page.locator("#to").press("Tab")
    assert told.value.json()["series"]["loss"][0] == list(range(100, 201))
    with page.expect_response(lambda answer: "/curves" in answer.url and "from" not in answer.url):
        page.get_by_role("button", name="Show all").click()
    box = page.locator("#curves .u-over").first.bounding_box()
    with page.expect_response(lambda answer: "from=" in answer.url and "to=" in answer.url):
        page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + 40)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + 60, steps=4)
        page.mouse.up()
    assert 100 < float(page.locator("#from").input_value()) < 150


@pytest.mark.slow
def test_the_curves_stand_over_tokens_and_time_and_on_a_logarithmic_axis(page):
    page.goto("/studio/runs/wide")
    page.locator("#curves canvas").first.wait_for()
    for axis in ("tokens", "seconds"):
        with page.expect_response(lambda answer, axis=axis: f"axis={axis}" in answer.url):
            page.locator("#axis").select_option(axis)
    page.get_by_role("button", name="Log", exact=True).click()
    assert page.get_by_role("button", name="Log", exact=True).get_attribute("aria-pressed") == "true"
    page.locator("#curves canvas").first.wait_for()


@pytest.mark.slow
def test_the_numbers_and_the_pictures_are_saved(page):
    page.goto("/studio/runs/wide")
    page.locator("#curves canvas").first.wait_for()
    with page.expect_download() as told:
        page.get_by_role("button", name="CSV").click()
    lines = Path(told.value.path()).read_text().splitlines()
    assert lines[0].startswith("step,loss,lr,grad_norm,eval_loss") and len(lines) == 401
    assert lines[1].startswith("1,2,0.001,")
    with page.expect_download() as told:
        page.get_by_role("button", name="Save the chart Loss as a picture").click()
    assert Path(told.value.path()).read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_what_files_say_is_text_and_nothing_more(page):
    page.goto("/studio/runs/hostile")
    page.get_by_text("The whole recipe").click()
    page.get_by_text(HOSTILE).first.wait_for()
    page.goto("/studio/runs")
    page.get_by_role("link", name="hostile").wait_for()
    assert page.evaluate("document.querySelectorAll('main img').length") == 0


@pytest.mark.slow
def test_the_report_opens_apart_from_the_studio(page, address):
    page.goto("/studio/runs/shown")
    with page.context.expect_page() as told:
        page.get_by_role("link", name="Report").click()
    told.value.wait_for_load_state()
    assert told.value.title() == "A report"


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["dark", "light"])
@pytest.mark.parametrize("path", ["/runs", "/runs/shown", "/runs?run=bare&run=wide"])
def test_a_page_of_runs_fits_a_telephone(browser, address, path, scheme):
    with visit(browser, address, width=390, scheme=scheme) as page:
        page.goto(f"/studio{path}")
        page.locator("canvas, svg.spark").first.wait_for()
        assert late(page) == [] and page.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/new", "/rows", "/runs", "/runs/shown", "/runs?run=bare&run=wide"])
def test_axe_finds_nothing(page, path):
    page.goto(f"/studio{path}")
    page.locator("canvas, svg.spark, form").first.wait_for()
    assert findings(page) == []
