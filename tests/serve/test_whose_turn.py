"""Whose turn it is: nobody is kept waiting by somebody else's flood, nor by adapters that are smaller."""

import pytest

from graft.generate.sampling import Sampling
from graft.serve.jobs import Job
from graft.serve.turns import Turns


def job(adapter=None, owner=""):
    return Job([1], adapter, Sampling(), frozenset(), lambda event: None, owner=owner)


def filled(*jobs, patience=2):
    turns = Turns(patience)
    for one in jobs:
        turns.add(one)
    return turns


def order(turns, rows, held=()):
    """Return the jobs in the order in which they come in; the oldest text ends when a row is needed."""
    seen = []
    while (found := turns.next(seen[-(rows - 1) :], held)) is not None:
        turns.take(found)
        seen.append(found)
    return seen


def test_texts_of_one_caller_and_adapter_come_in_the_order_of_their_arrival():
    jobs = [job() for _ in range(5)]
    assert order(filled(*jobs), rows=2) == jobs


def test_a_flood_of_one_caller_delays_another_by_one_text():
    flood, late = [job(owner="a") for _ in range(6)], job(owner="b")
    assert order(filled(*flood, late), rows=2).index(late) == 1


def test_a_flood_on_one_adapter_delays_another_by_one_text():
    flood, late = [job("large") for _ in range(6)], job("small")
    assert order(filled(*flood, late), rows=2).index(late) == 1


def test_a_caller_with_many_adapters_has_no_more_rows_than_one_with_a_single_one():
    flood = [job(f"a{number}", owner="a") for number in range(6)]
    other = [job("b", owner="b") for _ in range(3)]
    first = order(filled(*flood, *other), rows=2)[:6]
    assert [one.owner for one in first] == ["a", "b"] * 3


def test_texts_on_adapters_that_are_not_there_are_passed_by_and_stay():
    away, here = job("away"), job("here")
    turns = filled(away, here)
    assert order(turns, rows=2, held={"away"}) == [here]
    assert list(turns) == [away]


@pytest.mark.parametrize("patience", [1, 3])
def test_a_text_without_room_is_passed_by_so_many_texts_and_no_more(patience):
    large, others, bare = job("large"), [job("small") for _ in range(6)], job()
    turns = filled(large, *others, patience=patience)
    turns.lacks_room(large)
    assert order(turns, rows=9, held={"large"}) == others[:patience]
    turns.add(bare)
    assert turns.next([], {"large"}) is bare  # needs no room for an adapter
    turns.take(bare)
    assert turns.next([], ()) is large
    turns.take(large)
    assert turns.next([], ()) is others[patience]


def test_a_text_without_room_that_is_given_up_holds_nobody():
    large, small = job("large"), job("small")
    turns = filled(large, small, patience=0)
    turns.lacks_room(large)
    assert turns.next([], {"large"}) is None
    turns.remove(large)
    assert turns.next([], ()) is small
