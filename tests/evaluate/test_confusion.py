"""Which classes were taken for which, beside a count by hand and scikit-learn's order of arguments."""

import random

from graft.evaluate.confusion import confusion


def test_every_row_is_counted_once_under_its_two_classes():
    draw = random.Random(0)
    true, predicted = ([draw.randrange(4) for _ in range(200)] for _ in range(2))
    found = confusion(predicted, true, "abcd")
    assert sum(count for *_, count in found) == 200
    for a, b, count in found:
        assert count == sum("abcd"[t] == a and "abcd"[p] == b for t, p in zip(true, predicted, strict=True))


def test_words_of_tagged_rows_are_counted_one_by_one():
    assert confusion([[0, 1], [1]], [[0, 0], [1]], ["O", "B"]) == [
        ("O", "O", 1),
        ("O", "B", 1),
        ("B", "B", 1),
    ]


def test_without_rows_there_is_nothing():
    assert confusion([], [], []) == []
