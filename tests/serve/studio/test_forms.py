"""What the values of the form of a new run mean."""

import json

import pytest

from graft.core.cards import cards
from graft.recipe import explain, read
from graft.recipe.stages import stage_cards
from graft.serve.studio.forms import offered, understood

ROWS = {"data.train": "seedling:descriptions"}


def test_values_mean_what_the_same_words_of_a_command_line_mean(tmp_path):
    found = understood(ROWS | {"train.lr": "1e-3", "method.name": "qlora", "method.r": " 4 "}, tmp_path)
    words = ["data.train=seedling:descriptions", "train.lr=1e-3", "method.name=qlora", "method.r=4"]
    assert found.problems == {} and found.recipe == read({}, [*words, f"output={tmp_path}"])
    assert found.words == [*words, f"output={tmp_path}"]
    assert any("qlora is method lora" in text for text in found.notices)


def test_empty_values_are_left_out(tmp_path):
    found = understood(ROWS | {"train.lr": "", "quant": "  "}, tmp_path)
    assert found.recipe == read({}, ["data.train=seedling:descriptions", f"output={tmp_path}"])


def test_a_path_is_taken_letter_by_letter(tmp_path):
    rows = tmp_path / "a: b, [c] #d.jsonl"
    rows.write_text("")
    assert understood({"data.train": str(rows)}, tmp_path).recipe.data.train == str(rows)


@pytest.mark.parametrize(
    ("key", "text", "part"),
    [
        ("train.lr", "-1", "should be greater than 0"),
        ("train.lr", "fast", "should be a valid number"),
        ("train.max_steps", "0", "greater than or equal to 1"),
        ("train.lrr", "1", "nearest: train.lr"),
        ("method.name", "lorra", "nearest: lora"),
        ("method.r", "many", "rank"),
        ("stage", "stf", "nearest: sft"),
        ("train.micro_batch_size", "3", "does not divide"),
        ("train.samples", "[&a x]", "marks"),
        ("model", "[", None),
        ("model", '{"config": {}}', None),
    ],
)
def test_what_is_wrong_is_told_at_its_field_in_three_parts(tmp_path, key, text, part):
    found = understood(ROWS | {key: text}, tmp_path)
    if part is None:  # it is a name, however odd
        assert found.recipe.model == text
        return
    problem = found.problems[key]
    assert found.recipe is None and part in problem
    assert "Expected: " in problem and "To do: " in problem and problem.endswith(".")


def test_the_usual_value_is_named_where_there_is_one(tmp_path):
    assert (
        "leave it empty: 0.0002 is usual"
        in understood(ROWS | {"train.lr": "0"}, tmp_path).problems["train.lr"]
    )
    assert "leave it empty: 8 is usual" in understood(ROWS | {"method.r": "x"}, tmp_path).problems["method.r"]


def test_rows_that_are_not_there_are_told_at_their_field(tmp_path):
    gone = str(tmp_path / "gone.jsonl")
    assert "no rows are named" in understood({}, tmp_path).problems["data.train"]
    assert "there is no file" in understood({"data.train": gone}, tmp_path).problems["data.train"]
    found = understood(ROWS | {"data.eval": gone}, tmp_path)
    assert list(found.problems) == ["data.eval"]


@pytest.mark.parametrize(
    "text",
    ["&a [1]", "[&a [x,x], *a]", "{a: &b 1}", "*a", "!!python/object:os.system {}", "[" * 500, "{" * 500,
     "\0", "- - -", "'", "\ud800", "1e999", "NaN", "~", "= =", "9" * 4000],
)  # fmt: skip
@pytest.mark.parametrize(
    "key", ["train.lr", "train.samples", "method", "stage", "data", "data.train", "model"]
)
def test_nothing_that_is_typed_is_a_defect(tmp_path, key, text):
    found = understood(ROWS | {key: text}, tmp_path)
    assert (found.recipe is None) == bool(found.problems)
    if found.recipe is not None:
        found.recipe.yaml().encode()


@pytest.mark.parametrize(
    "key", ["", ".", "a=b", "a b", "output", "train..lr", "x.y.z.u.v", "é", "data.train\n"]
)
def test_a_key_that_is_none_is_refused(tmp_path, key):
    assert key in understood(ROWS | {key: "1"}, tmp_path).problems


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("evaluate.metrics", {"evaluate.metrics": "[bleu, {file}:run]"}),
        ("objective", {"objective": "{file}:run"}),
        ("stage.judge", {"stage": "ppo", "stage.rewards": "runs/reward", "stage.judge": "{file}:run"}),
        ("stage.rewards", {"stage": "ppo", "stage.rewards": "{file}:run"}),
        ("stage.rewards", {"stage": "{{name: grpo, rewards: {{'{file}:run': 1.0}}}}"}),
    ],
)
def test_s07_a_page_is_no_way_to_run_a_function(tmp_path, key, values):
    file = tmp_path / "mine.py"
    file.write_text("def run(*a, **k):\n    raise SystemExit\n")
    typed = {name: text.format(file=file) if "{" in text else text for name, text in values.items()}
    found = understood(ROWS | typed, tmp_path / "run")
    assert found.recipe is None and "function of your own" in found.problems[key]


def test_a_form_offers_every_method_stage_and_key():
    found = json.loads(json.dumps(offered()))
    assert [one["name"] for one in found["methods"]] == list(cards())
    assert [one["name"] for one in found["stages"]] == list(stage_cards())
    assert list(found["keys"]) == list(explain()) and found["keys"]["train.lr"]["usual"] == 2e-4
