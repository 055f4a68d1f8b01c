"""Rows chosen by a seed: held out, and sampled."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graft.data.rows import Row
from graft.data.sample import _drawn, _shares, sample, sampling, split
from graft.errors import DataError


def labelled(**classes):
    """Return rows sorted by class, as files often are."""
    names = [name for name, count in classes.items() for _ in range(count)]
    return [Row(f"f:{i}", "label", (f"text {i}", name)) for i, name in enumerate(names)]


def count(rows):
    return Counter(row.value[1] for row in rows)


def test_the_share_held_out_is_exact_and_depends_on_content_and_seed_only():
    rows = [Row(f"f:{i}", "text", f"row {i}") for i in range(101)]
    train, held = split(rows, 0.05, 0)
    assert (len(train), len(held)) == (96, 5)
    moved = [Row(f"g:{i}", row.kind, row.value) for i, row in enumerate(reversed(rows))]
    assert {row.value for row in split(moved, 0.05, 0)[1]} == {row.value for row in held}
    assert {row.value for row in split(rows, 0.05, 1)[1]} != {row.value for row in held}


def test_equal_rows_stay_on_one_side():
    rows = [Row(f"f:{i}", "text", f"row {i // 2}") for i in range(40)] + [Row("f:40", "text", "alone")]
    train, held = split(rows, 0.25, 0)
    assert len(held) == 10 and not {row.value for row in held} & {row.value for row in train}
    assert len(split([Row("f:1", "text", "x")] * 4, 0.5, 0)[1]) == 2


def test_answers_to_one_prompt_stay_on_one_side():
    rows = [Row(f"f:{i}", "ranking", (f"q {i // 4}", (f"a {i}", "b"), None)) for i in range(40)]
    train, held = split(rows, 0.2, 0)
    assert len(held) == 8 and not {row.value[0] for row in held} & {row.value[0] for row in train}


def test_too_few_rows_to_hold_any_out_is_an_error():
    with pytest.raises(DataError, match="holds out 1 of 1"):
        split([Row("f:1", "text", "x")], 0.05, 0)


def test_a_sample_follows_from_content_and_seed_and_keeps_the_order():
    rows = [Row(f"f:{i}", "pair", (f"q {i}", "a")) for i in range(100)]
    taken = sample(rows, 10, 0)
    assert len(taken) == 10 and taken == [row for row in rows if row in taken]
    assert {row.value for row in sample(rows[::-1], 10, 0)} == {row.value for row in taken}
    assert sample(rows, 10, 1) != taken
    assert sample(rows, None, 0) == rows and sample(rows, 100, 0) == rows and sample(rows, 500, 0) == rows


def test_a_sample_looks_at_the_whole_file():
    rows = [Row(f"f:{i}", "text", f"row {i}") for i in range(1000)]
    places = [int(row.source[2:]) for row in sample(rows, 200, 0)]
    # Of 200 uniform draws, the mean has a standard deviation of 18 (sqrt(1000^2 / 12 / 200 * 0.8)).
    assert abs(sum(places) / 200 - 499.5) < 4 * 18


def test_equal_rows_are_sampled_one_by_one():
    assert len(sample([Row(f"f:{i}", "text", "same") for i in range(9)], 4, 0)) == 4


@pytest.mark.parametrize(
    ("sizes", "limit", "expected"),
    [
        ({"a": 50, "b": 50}, 10, {"a": 5, "b": 5}),
        ({"a": 90, "b": 10}, 10, {"a": 9, "b": 1}),
        ({"a": 60, "b": 30, "c": 10}, 7, {"a": 4, "b": 2, "c": 1}),  # 4.2, 2.1, 0.7: the largest fraction
        ({"a": 1, "b": 1, "c": 98}, 3, {"c": 3}),  # 0.03, 0.03, 2.94
    ],
)
def test_every_class_gives_its_share(sizes, limit, expected):
    assert count(sample(labelled(**sizes), limit, 0)) == expected


def test_more_classes_than_rows_give_at_most_one_row_each():
    rows = labelled(**{f"class{i}": 20 for i in range(30)})
    taken = sample(rows, 10, 0)
    assert len(taken) == 10 and max(count(taken).values()) == 1
    assert sampling(taken, rows, 0) == "10 of 600 rows, sampled by seed 0; 10 of 30 classes are in them"
    assert set(count(sample(rows, 10, 1))) != set(count(taken))


def test_nothing_is_said_of_a_limit_that_leaves_nothing_out():
    rows = labelled(a=3)
    assert sampling(sample(rows, 3, 0), rows, 0) == ""


def naive_split(rows, share, seed):
    """The rule in plain words: whole groups in the order of their random numbers, as long as they fit."""
    wanted = max(1, round(share * len(rows)))
    groups = {}
    for i, row in enumerate(rows):
        groups.setdefault(row.group(), []).append(i)
    ordered, held = sorted(groups, key=lambda key: _drawn(key, seed)), []
    for key in ordered:
        if len(held) + len(groups[key]) <= wanted:
            held += groups[key]
    for key in ordered:
        held += [i for i in groups[key] if i not in held][: wanted - len(held)]
    return sorted(held)


def naive_sample(rows, limit, seed):
    """Each class gives its share of the rows with the smallest random numbers."""
    seen, drawn, classes = Counter(), [], {}
    for i, row in enumerate(rows):
        drawn.append(_drawn(row.key() + seen[row.key()].to_bytes(8, "little"), seed))
        seen[row.key()] += 1
        classes.setdefault(row.value[1] if row.kind == "label" else "", []).append(i)
    shares = _shares({name: len(own) for name, own in classes.items()}, limit, seed)
    return sorted(
        i for name, own in classes.items() for i in sorted(own, key=drawn.__getitem__)[: shares[name]]
    )


@given(st.lists(st.integers(0, 9), min_size=3, max_size=40), st.integers(-3, 3), st.floats(0.02, 0.6))
@settings(max_examples=100, deadline=None)
def test_rows_are_chosen_by_the_rule_in_plain_words(numbers, seed, share):
    rows = [Row(f"f:{i}", "text", f"row {n}") for i, n in enumerate(numbers)]
    if max(1, round(share * len(rows))) < len(rows):
        held = [int(row.source[2:]) for row in split(rows, share, seed)[1]]
        assert held == naive_split(rows, share, seed)
    classes = [Row(f"f:{i}", "label", (f"t {n}", "abc"[n % 3])) for i, n in enumerate(numbers)]
    for some in (rows, classes):
        taken = [int(row.source[2:]) for row in sample(some, len(some) // 2, seed)]
        assert taken == naive_sample(some, len(some) // 2, seed)
