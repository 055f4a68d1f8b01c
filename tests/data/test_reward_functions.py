"""Ready reward functions: official verdicts on real answers, and the ways in which people write numbers."""

import gzip
import json
from pathlib import Path

import pytest

from graft.data.reward_functions import exact_number, think_format

pytestmark = pytest.mark.quick
SOLUTIONS = Path(__file__).parents[3] / "shared" / "data" / "gsm8k" / "model_solutions.jsonl.gz"
CORRECT = {"6b_finetuning": 286, "6b_verification": 515, "175b_finetuning": 458, "175b_verification": 742}


@pytest.mark.skipif(not SOLUTIONS.exists(), reason="needs ../shared/data/gsm8k")
def test_published_solutions_of_gsm8k_get_the_official_verdicts():
    with gzip.open(SOLUTIONS, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    wanted = [row["ground_truth"] for row in rows]
    for system, correct in CORRECT.items():
        found = exact_number([row[system]["solution"] for row in rows], answer=wanted, question=None)
        assert found == [row[system]["is_correct"] for row in rows]
        assert sum(found) == correct


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        ("so it is 1,234.50 dollars.", "1234.5", True),
        ("The total is $1,234.", 1234, True),
        ("= 42.00", "#### 42", True),
        ("#### 42\nThis took 3 steps.", "42", True),
        ("Not 42 but 41", "42", False),
        ("10-5", "5", True),
        ("(1+9)-5", 5, True),
        ("the change is -5", "-5", True),
        ("the change is \u22125", -5, True),
        ("it loses -$5.", "-5", True),
        ("7, 8, 9", "9", True),
        ("1,2345", "2345", True),  # no thousands
        (".5 of it", 0.5, True),
        ("none", "0", False),
        ("", "0", False),
        ("\\boxed{17}", "17", True),
    ],
)
def test_the_number_that_an_answer_ends_with_is_compared(text, answer, right):
    assert exact_number([text, [{"role": "assistant", "content": text}]], [answer] * 2) == [right, right]


def test_an_answer_without_a_number_cannot_be_compared():
    assert exact_number(["5", "5", "5"], ["five", None, "5"]) == [None, None, 1.0]


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("<think>\nTwo\nlines\n</think>\nThe answer.", True),
        ("\n<think></think>4\n", True),
        ("First <think>then</think> 4", False),
        ("<think>a</think><think>b</think> 4", False),
        ("<think>a<think>b</think> 4", False),
        ("<think>a</think> \n", False),
        ("<think>a 4", False),
        ("a</think> 4", False),
    ],
)
def test_thoughts_stand_once_and_before_an_answer(text, right):
    assert think_format([text, [{"role": "assistant", "content": text}]]) == [right, right]
