"""Reward functions are called as TRL calls them, and what is wrong with one is said with the row."""

import asyncio
import json
import math
from fractions import Fraction

import numpy
import pytest
import torch

from graft.errors import UsageError
from graft.stages.reward_calls import Answered, called

pytestmark = pytest.mark.quick
ASKED = [{"role": "user", "content": "One?"}]


def answers(*texts, prompt="P", **columns):
    return [
        Answered(prompt, {k: v[i] for k, v in columns.items()}, [1], [i, 2], text, True, f"f:{i + 1}")
        for i, text in enumerate(texts)
    ]


def scored(function, answered):
    return called({"mine": function}, answered)["mine"]


def test_a_function_gets_texts_ids_and_columns_as_lists():
    got = {}

    def everything(**keywords):
        got.update(keywords)
        return [0, 1]

    assert scored(everything, answers("a", "b", answer=[3, 4])) == [0.0, 1.0]
    assert got == {
        "prompts": ["P", "P"],
        "completions": ["a", "b"],
        "completion_ids": [[0, 2], [1, 2]],
        "answer": [3, 4],
    }


def test_a_function_gets_what_it_names():
    rows = answers("a", "bc", answer=[3, 4], other=[0, 0])
    seen = []

    def named(completions, sources, answer, *, margin=2):
        seen.extend([completions, sources])
        return [a * margin for a in answer]

    assert scored(named, rows) == [6, 8]
    assert seen == [["a", "bc"], ["f:1", "f:2"]]


@pytest.mark.parametrize("prompt", [ASKED, {"messages": ASKED, "tools": []}])
def test_conversations_are_messages_that_a_function_may_change(prompt):
    def greedy(prompts, completions):
        assert prompts == [ASKED] and completions == [[{"role": "assistant", "content": "a"}]]
        prompts[0][0]["content"] = "changed"
        prompts[0].append(completions[0].pop())
        return [1]

    assert scored(greedy, answers("a", prompt=prompt)) == [1]
    assert ASKED == [{"role": "user", "content": "One?"}]


def test_rows_without_a_column_give_none():
    rows = [*answers("a", answer=[3]), *answers("b")]
    assert scored(lambda answer, **_: answer, rows) == [3.0, None]


def test_numbers_of_all_kinds_count_and_none_stays():
    values = [True, 2, 0.5, None, numpy.float32(0.25), numpy.bool_(True), torch.tensor([4.0]), Fraction(1, 2)]
    rows = answers(*"abcdefgh")
    assert scored(lambda completions: values, rows) == [1, 2, 0.5, None, 0.25, 1, 4, 0.5]
    assert scored(lambda completions: torch.arange(8), rows) == list(range(8))
    assert scored(lambda completions: numpy.arange(8.0), rows) == list(range(8))
    assert scored(lambda completions: (len(c) for c in completions), rows) == [1] * 8


def test_no_answers_ask_nobody():
    assert called({"mine": lambda **_: 1 / 0}, []) == {"mine": []}


async def later(completions, **keywords):
    await asyncio.sleep(0)
    return [len(c) for c in completions]


class Judge:
    async def __call__(self, completions):
        return [1 for _ in completions]


def test_asynchronous_functions_are_awaited_also_inside_a_loop():
    functions = {"later": later, "plain": lambda completions: [0, 0], "object": Judge()}
    wanted = {"later": [1, 2], "plain": [0, 0], "object": [1, 1]}
    assert called(functions, answers("a", "bb")) == wanted

    async def notebook():
        return called(functions, answers("a", "bb"))

    assert asyncio.run(notebook()) == wanted


def test_asynchronous_functions_run_at_the_same_time():
    here = []

    async def waits(completions):
        here.append(asyncio.current_task())
        while len(here) < 2:  # until the other one has begun
            await asyncio.sleep(0.001)
        return [1]

    async def bounded(completions):
        return await asyncio.wait_for(waits(completions), 20)

    assert called({"a": bounded, "b": bounded}, answers("a")) == {"a": [1], "b": [1]}


def test_the_connections_of_an_asynchronous_function_live_on():
    loops = []

    async def remembers(completions):
        loops.append(asyncio.get_running_loop())
        return [1]

    for _ in range(2):
        scored(remembers, answers("a"))
    assert loops[0] is loops[1] and not loops[0].is_closed()


async def fails_later(completions):
    await asyncio.sleep(0)
    return [1 / (c != "bad") for c in completions]


@pytest.mark.parametrize(
    "function", [lambda completions: [1 / (c != "bad") for c in completions], fails_later]
)
def test_a_function_that_fails_is_named_with_the_row_and_the_line(function):
    said = r"'mine' failed on f:2 with ZeroDivisionError at .*test_reward_calls.py:\d+: division by zero"
    with pytest.raises(UsageError, match=said) as caught:
        scored(function, answers("a", "bad", "bad"))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_function_that_fails_on_all_answers_together_is_named():
    def alone(completions):
        (_,) = completions
        return [1]

    with pytest.raises(UsageError, match=r"failed with ValueError.*on all answers together"):
        scored(alone, answers("a", "b"))


def test_the_line_is_one_of_the_function_and_not_of_a_library():
    with pytest.raises(UsageError, match=r"JSONDecodeError at .*test_reward_calls.py:\d+: Expecting"):
        scored(lambda completions: [json.loads(c) for c in completions], answers("1", "?"))


def test_a_generator_that_fails_on_its_way_is_named_with_the_row():
    with pytest.raises(UsageError, match="failed on f:2 with ValueError"):
        scored(lambda completions: (int(c) for c in completions), answers("1", "b"))


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ([1.0], "returned 1 values for 2 answers, the first to f:1"),
        ([1, 2, 3], "returned 3 values for 2 answers"),
        ([1, math.nan], "returned nan for f:2"),
        ([-math.inf, 1], "returned -inf for f:1"),
        ([1, "2"], "returned '2' for f:2"),
        ([1, [2]], r"returned \[2\] for f:2"),
        (torch.zeros(2, 2), r"returned tensor\(\[0., 0.\]\) for f:1"),
        ("ab", "returned a str: 'ab'"),
        ({"a": 1, "b": 2}, "returned a dict"),
        (1.0, "returned a float: 1.0"),
        (None, "returned a NoneType"),
    ],
)
def test_what_is_no_number_for_each_answer_is_refused(returned, said):
    with pytest.raises(UsageError, match=f"reward 'mine' {said}.*one number for each answer"):
        scored(lambda completions: returned, answers("a", "b"))


def test_a_column_that_no_row_has_is_named_with_the_nearest():
    said = r"asks for anser, which no row has.*answer.*did you mean answer\?.*default"
    with pytest.raises(UsageError, match=said):
        scored(lambda completions, anser: [], answers("a", answer=[1]))
