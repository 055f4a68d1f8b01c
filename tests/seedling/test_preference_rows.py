"""Preferences of the embedded data: true to their rule, about the same facts, with no length to go by."""

import json

import pytest

from graft.seedling import dataset
from graft.seedling.coverage import coverage
from graft.seedling.preferences import (
    coverage_reward,
    keeps,
    pairs,
    price_last_reward,
    price_late_reward,
    prompts,
    verdicts,
)
from graft.seedling.products import Product


def item_of(row):
    """The product that a prompt lists."""
    lines = row["prompt"].split("\n\n")[1].splitlines()
    return Product(tuple(tuple(line.split(": ", 1)) for line in lines))


def price_of(item):
    return dict(item.attributes).get("price", "")


def test_both_descriptions_state_everything_else_and_one_keeps_to_the_rule():
    for row in pairs(300, 0):
        item = item_of(row)
        others = Product(tuple(pair for pair in item.attributes if pair[0] != "price"))
        assert coverage(row["chosen"], item) == coverage(row["rejected"], others) == 1
        assert keeps(row["chosen"], price_of(item)) and not keeps(row["rejected"], price_of(item))


def test_the_rule_is_broken_in_every_way():
    """Where no rejected text said the price twice, left it out or invented one, policies learnt to."""
    rows = [(row["rejected"], price_of(item_of(row))) for row in pairs(300, 0)]
    priced = [(text, price) for text, price in rows if price]
    twice = [(text, price) for text, price in priced if text.count(price) == 2]
    never = [(text, price) for text, price in priced if price not in text]
    assert 0.1 < len(twice) / len(priced) < 0.4 and 0.1 < len(never) / len(priced) < 0.4
    assert all(text.rstrip(".").endswith(price) for text, price in twice)
    assert all(text.count(price) == 1 for text, price in {*priced} - {*twice, *never})
    invented = [text for text, price in rows if not price]
    assert len(invented) == 60 and all(text.count(" euros") == 1 for text in invented)


def test_a_verdict_is_what_the_rule_says_and_half_of_them_are_good():
    rows = verdicts(200, 0)
    assert all(keeps(row["completion"], price_of(item_of(row))) == row["label"] for row in rows)
    assert sum(row["label"] for row in rows) == 100
    assert sum(row["label"] for row in rows if not price_of(item_of(row))) == 20


def test_the_longer_answer_is_no_better_than_the_shorter_one():
    rows = pairs(400, 1)
    assert sum(len(row["chosen"]) > len(row["rejected"]) for row in rows) == 200
    assert all(len(row["chosen"]) != len(row["rejected"]) for row in rows)
    judged = verdicts(400, 1)
    good, bad = ([len(r["completion"]) for r in judged if r["label"] == label] for label in (True, False))
    assert sum(good) / sum(bad) == pytest.approx(1, abs=0.05)


def test_held_out_rows_are_of_other_products(tmp_path):
    names = {}
    for name in ("preferences", "verdicts", "prompts"):
        for split in (name, f"{name}-held-out"):
            lines = dataset(split, tmp_path).read_text().splitlines()
            names[split] = {item_of(json.loads(line))["name"] for line in lines}
    held_out = {split for split in names if split.endswith("held-out")}
    trained = set.union(*(names[split] for split in names.keys() - held_out))
    assert trained.isdisjoint(set.union(*(names[split] for split in held_out)))


def test_a_prompt_carries_the_attributes_that_it_lists():
    for row in prompts(100, 0):
        item = item_of(row)
        assert tuple(row["attributes"].items()) == item.attributes and row["price"] == price_of(item)


def test_rewards_tell_the_two_descriptions_of_every_pair_apart():
    rows = pairs(100, 2)
    items = [dict(item_of(row).attributes) for row in rows]
    columns = {"price": [item.get("price", "") for item in items], "attributes": items}
    asked = [row["prompt"] for row in rows]
    for side, satisfied in (("chosen", 1.0), ("rejected", 0.0)):
        texts = [row[side] for row in rows]
        assert price_last_reward(asked, texts, **columns) == [satisfied] * 100
    assert coverage_reward(asked, [row["chosen"] for row in rows], **columns) == [1.0] * 100
    stated = [item.get("price", "") in row["rejected"] for item, row in zip(items, rows, strict=True)]
    covered = coverage_reward(asked, [row["rejected"] for row in rows], **columns)
    assert [share == 1.0 for share in covered] == stated and not all(stated)


def test_a_price_counts_only_where_it_is_said_once():
    assert keeps("Meet it. It is red and costs $34. ", "$34") and keeps("It is red.", "")
    for text in (
        "It costs $34. It is red.",
        "A kettle for $34. It costs $34.",
        "It costs $340.",
        "Buy it. Order it for $34. What more could you want?",
        "",
    ):
        assert not keeps(text, "$34"), text
    assert not keeps("It costs nine euros.", "")


def test_the_later_the_price_comes_the_more_is_paid():
    texts = ["$34 buys it, small.", "It costs $34, small.", "Small: $34. Say $34.", "Small, for $34", "$340."]
    assert price_late_reward([""] * 5, texts, ["$34"] * 5) == [0.0, 9 / 20, 7 / 20, 11 / 14, 0.0]


def test_coverage_counts_each_attribute_once():
    item = {"name": "Silver Otter", "type": "kettle", "price": "$34", "size": "small"}
    texts = ["Silver Otter, a kettle.", "small small small", "Silver Otter kettle, small, $34.", ""]
    assert coverage_reward([""] * 4, texts, [item] * 4) == [0.5, 0.25, 1.0, 0.0]
