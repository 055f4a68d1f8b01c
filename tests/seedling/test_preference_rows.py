"""Preferences of the embedded data: true to their rule, about the same facts, with no length to go by."""

import json

from graft.seedling import dataset
from graft.seedling.coverage import coverage
from graft.seedling.preferences import pairs, price_last, verdicts
from graft.seedling.products import Product


def item_of(row):
    """The product that a prompt lists."""
    lines = row["prompt"].split("\n\n")[1].splitlines()
    return Product(tuple(tuple(line.split(": ", 1)) for line in lines))


def test_both_descriptions_state_everything_and_one_keeps_to_the_rule():
    for row in pairs(300, 0):
        item = item_of(row)
        assert coverage(row["chosen"], item) == coverage(row["rejected"], item) == 1
        assert price_last(row["chosen"], item) and not price_last(row["rejected"], item)


def test_a_verdict_is_what_the_rule_says_and_half_of_them_are_good():
    rows = verdicts(200, 0)
    assert all(price_last(row["completion"], item_of(row)) == row["label"] for row in rows)
    assert sum(row["label"] for row in rows) == 100


def test_the_longer_answer_is_no_better_than_the_shorter_one():
    rows = pairs(1000, 1)
    longer = sum(len(row["chosen"]) > len(row["rejected"]) for row in rows)
    equal = sum(len(row["chosen"]) == len(row["rejected"]) for row in rows)
    assert abs((longer + equal / 2) / len(rows) - 0.5) < 0.05  # three standard errors


def test_held_out_rows_are_of_other_products(tmp_path):
    names = {}
    for name in ("preferences", "preferences-held-out", "verdicts", "verdicts-held-out"):
        lines = dataset(name, tmp_path).read_text().splitlines()
        names[name] = {item_of(json.loads(line))["name"] for line in lines}
    trained = names["preferences"] | names["verdicts"]
    assert trained.isdisjoint(names["preferences-held-out"] | names["verdicts-held-out"])
