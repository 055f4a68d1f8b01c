"""The pages of a new run and of rows in a real browser."""

import json
import os
import signal
import sys

import pytest

pytest.importorskip("uvicorn")
import stand_in_run
from studio_browser import chromium, late, until, visit
from studio_server import studio_server

from graft.serve.studio import processes
from graft.serve.studio.processes import jobs

ROWS = [{"prompt": f"Question {i}? ", "completion": f"The answer is {i}."} for i in range(1, 12)]
TALK = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello there"}]}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("runs")
    lines = [json.dumps(row) for row in ROWS]
    (home / "good.jsonl").write_text("\n".join(lines))
    (home / "talk.jsonl").write_text("\n".join([json.dumps(TALK)] * 3))
    lines[3] = '{"prompt": "Question 4? ", "completion": ""}'
    lines[6] = '{"prompt": "Question 7'
    (home / "bad.jsonl").write_text("\n".join(lines))
    return home


@pytest.fixture(scope="module")
def address(home):
    kept = processes.PROGRAM
    processes.PROGRAM = (sys.executable, stand_in_run.__file__)  # of runs; plans and rows are graft's own
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
    with visit(browser, address, expected=["409 (Conflict)", "400 (Bad Request)"]) as page:
        yield page


def wrong(page, key):
    """Return what is said at a field, once something is."""
    until(page, "id => document.getElementById(id)?.textContent", f"f-{key}-wrong")
    return page.locator(f"[id='f-{key}-wrong']").inner_text()


def look_at(page, path, stage=None):
    page.goto("/studio/rows")
    until(page, "() => document.querySelectorAll('#stage option').length")
    page.get_by_label("Rows", exact=True).fill(str(path))
    if stage:
        page.get_by_label("What the rows are for").select_option(stage)
    page.get_by_role("button", name="Look at the rows").click()
    until(page, "() => document.querySelector('.result')?.ariaBusy === 'false'", timeout_s=240)


@pytest.mark.slow
def test_what_is_wrong_is_said_at_its_field(page, home):
    page.goto("/studio/new")
    page.get_by_label("Rows", exact=True).fill(str(home / "good.jsonl"))
    page.get_by_label("Learning rate").fill("-1")
    told = wrong(page, "train.lr")
    assert "should be greater than 0" in told and "Expected: peak learning rate" in told and "To do: " in told
    assert page.get_by_label("Learning rate").get_attribute("aria-invalid") == "true"
    page.get_by_label("Learning rate").fill("1e-3")
    until(page, "() => !document.querySelector('[aria-invalid=true]')")


@pytest.mark.slow
def test_rows_that_are_missing_are_said_at_their_field(page, home):
    page.goto("/studio/new")
    page.get_by_label("Rows", exact=True).fill(str(home / "gone.jsonl"))
    assert "there is no file" in wrong(page, "data.train")


@pytest.mark.slow
def test_the_plan_stands_beside_the_form(page, home):
    page.goto("/studio/new")
    page.get_by_label("Rows", exact=True).fill(str(home / "good.jsonl"))
    page.locator("#verdict").wait_for(timeout=240_000)
    assert page.locator("#verdict").inner_text() == "fits"
    assert page.locator(".memory > span").count() > 4
    page.get_by_label("Method", exact=True).select_option("qlora")
    until(page, "() => document.querySelector('#command')?.textContent.includes('method.name=qlora')")
    assert page.get_by_text("qlora is method lora").is_visible()


@pytest.mark.slow
def test_a_method_brings_the_fields_of_its_settings(page):
    page.goto("/studio/new")
    page.get_by_text("Settings of the method").click()
    assert page.locator("[id='f-method.lora_alpha']").is_visible()
    page.get_by_label("Method", exact=True).select_option("ia3")
    assert page.locator("[id='f-method.lora_alpha']").count() == 0


@pytest.mark.slow
def test_a_run_is_started_and_its_page_follows(page, home):
    page.goto("/studio/new")
    page.get_by_label("Rows", exact=True).fill(str(home / "good.jsonl"))
    page.get_by_label("Name of the run").fill("fresh")
    page.get_by_text("More settings").click()
    page.get_by_label("Other keys").fill("train.warmup=0.1\ntrain.keep=3")
    page.get_by_role("button", name="Start the run").click()
    page.wait_for_url("**/studio/runs/fresh")
    until(page, "() => document.querySelector('.title .badge')?.textContent === 'running'")
    kept = (home / "fresh" / "recipe.yaml").read_text()
    assert "warmup: 0.1" in kept and "keep: 3" in kept
    page.goto("/studio/new")
    page.get_by_label("Rows", exact=True).fill(str(home / "good.jsonl"))
    page.get_by_label("Name of the run").fill("fresh")
    page.get_by_role("button", name="Start the run").click()
    assert "there is a run fresh already" in wrong(page, "name")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["", "../up", "a b"])
def test_a_run_without_a_good_name_is_not_started(page, home, name):
    page.goto("/studio/new")
    page.get_by_label("Rows", exact=True).fill(str(home / "good.jsonl"))
    page.get_by_label("Name of the run").fill(name)
    page.get_by_role("button", name="Start the run").click()
    assert "Expected: letters, digits" in wrong(page, "name")
    assert not (home.parent / "up").exists()


@pytest.mark.slow
def test_a_file_that_is_sent_is_checked_row_by_row(page, home):
    page.goto("/studio/rows")
    page.get_by_label("Send a file of rows").set_input_files(home / "bad.jsonl")
    page.get_by_text("Rows that cannot be used").wait_for(timeout=240_000)
    places = page.locator(".result table th code").all_inner_texts()
    assert [place.rpartition("/")[2] for place in places] == ["bad.jsonl:4", "bad.jsonl:7"]
    assert (home / "files" / "bad.jsonl").read_bytes() == (home / "bad.jsonl").read_bytes()
    page.get_by_label("Send a file of rows").set_input_files(home / "bad.jsonl")
    page.get_by_text("there is a file bad.jsonl already").wait_for()


@pytest.mark.slow
def test_what_is_learnt_is_marked_token_by_token(page, home):
    look_at(page, home / "good.jsonl")
    row = page.locator(".masked").first
    learnt = "".join(row.locator("span.learnt").all_inner_texts())
    read = "".join(row.locator("span.context").all_inner_texts())
    assert "The answer is" in learnt and "Question" not in learnt
    assert "Question" in read and "answer" not in read
    assert row.locator("span.learnt").count() > 3  # a token each, not one piece


@pytest.mark.slow
def test_of_a_conversation_only_the_answer_is_learnt(page, home):
    look_at(page, home / "talk.jsonl")
    row = page.locator(".masked").first
    learnt = "".join(row.locator("span.learnt").all_inner_texts())
    assert learnt.strip().startswith("Hello there") and "Hi" not in learnt


@pytest.mark.slow
def test_all_of_a_text_is_learnt_when_it_is_pretrained_on(page, home):
    (home / "text.jsonl").write_text('{"text": "One sentence about a kettle."}\n' * 3)
    look_at(page, home / "text.jsonl", "pretrain")
    learnt = "".join(page.locator(".masked").first.locator("span.learnt").all_inner_texts())
    assert "sentence about a kettle." in learnt


@pytest.mark.slow
def test_rows_of_another_kind_are_refused_in_three_parts(page, home):
    look_at(page, home / "good.jsonl", "preference")
    told = page.get_by_role("alert").inner_text()
    assert "Expected: " in told and "To do: " in told


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["dark", "light"])
@pytest.mark.parametrize("path", ["/new", "/rows"])
def test_a_form_fits_a_telephone(browser, address, home, path, scheme):
    with visit(browser, address, width=390, scheme=scheme) as page:
        page.goto(f"/studio{path}?data={home / 'good.jsonl'}")
        page.locator("#verdict, .masked").first.wait_for(timeout=240_000)
        assert late(page) == [] and page.evaluate("document.documentElement.scrollWidth") <= 390
