"""Answers to sample prompts, from the file of a run to a table of prompts and steps."""

import json
import re

import pytest
import torch

from graft.recipe import read
from graft.runs.report.page import report
from graft.runs.samples import by_step, spread
from graft.training.log import RunLog
from graft.training.observer import Observer


@pytest.fixture
def written(tmp_path):
    """Return a function that writes samples as training does, and returns the text."""

    def write(sections):
        log = RunLog(tmp_path, torch.device("cpu"), Observer())
        for step, pairs in sections:
            log.sampled(step, [f"{prompt}\n\n{answer}" for prompt, answer in pairs])
        log.close()
        return (tmp_path / "samples.md").read_text()

    return write


def test_what_training_writes_is_read_again(written):
    text = written([(5, [("One?", "1"), ("Two?", "2\n\nor so")]), (10, [("One?", "I"), ("Two?", "")])])
    assert by_step(text, ["One?", "Two?"]) == {5: ("1", "2\n\nor so"), 10: ("I", "")}


def test_an_answer_that_looks_like_the_file_stays_one_answer(written):
    answer = "a\n\n---\n\nb\n\n## step 7\n\nc"
    text = written([(5, [("## step 1\n\nWhat (now)?", answer)]), (10, [("## step 1\n\nWhat (now)?", "d")])])
    assert by_step(text, ["## step 1\n\nWhat (now)?"]) == {5: (answer,), 10: ("d",)}


def test_a_file_of_another_form_is_not_taken_apart(written):
    text = written([(5, [("One?", "1")])])
    assert by_step(text, ["Two?"]) == {} and by_step(text + "more", ["One?"]) == {}


def test_a_table_shows_the_first_and_the_last_step():
    steps = list(range(20, 420, 20))
    shown = spread(steps)
    assert (len(shown), shown[0], shown[-1]) == (6, 20, 400) and shown == sorted(set(shown))
    assert spread([3, 9]) == [3, 9]


def test_the_report_sets_answers_of_several_steps_side_by_side(written, tmp_path):
    prompts = ["One?", "<b>Two?"]
    recipe = read({"train": {"samples": prompts}, "output": str(tmp_path)})
    (tmp_path / "recipe.yaml").write_text(recipe.yaml())
    (tmp_path / "notes.json").write_text(json.dumps(["the reward rises while the judge falls"]))
    written([(step, [(prompt, f"{prompt} {step}") for prompt in prompts]) for step in (5, 10)])
    page = report(tmp_path)
    cards = page.split("<article")[1:]
    assert len(cards) == 2 and all(f"<h4>Step {step}</h4>" in card for card in cards for step in (5, 10))
    said = re.findall(r'auto">([^<]*)', cards[1])
    assert said[:3] == [f"&lt;b&gt;Two?{step}" for step in ("", " 5", " 10")]
    assert "All " not in page and "the reward rises while the judge falls" in page
    written([(step, [(prompt, "x") for prompt in prompts]) for step in range(15, 90, 5)])
    page = report(tmp_path)
    assert page.count("<h4>Step ") == 12 and "<summary>All 17 evaluations</summary>" in page
