"""The demo's judgement of itself, on invented figures."""

from dataclasses import replace

import pytest

from graft.runs.demo import Scores, held_out, measure, recipe, shortfalls

BEFORE = Scores(coverage=0.30, others=0.05, verbatim=0.0, distinct_2=0.3, unique=1.0)
AFTER = Scores(coverage=0.95, others=0.04, verbatim=0.0, distinct_2=0.4, unique=1.0)


def test_a_clear_gain_passes():
    assert shortfalls(BEFORE, AFTER, chance=0.02) == []


@pytest.mark.parametrize(
    ("before", "after", "chance", "reason"),
    [
        ({}, {"coverage": 0.89}, 0.02, "0.89, and 0.90"),
        ({"coverage": 0.66}, {}, 0.02, "rose by 0.29"),
        ({}, {"others": 0.13}, 0.02, "other products"),
        ({}, {"verbatim": 0.10}, 0.02, "repeat the list"),
    ],
)
def test_each_way_to_look_good_without_being_good_is_refused(before, after, chance, reason):
    reasons = shortfalls(replace(BEFORE, **before), replace(AFTER, **after), chance)
    assert len(reasons) == 1 and reason in reasons[0]


def test_limits_themselves_pass():
    before, after = replace(BEFORE, coverage=0.5), replace(AFTER, coverage=0.9, others=0.12)
    assert shortfalls(before, after, chance=0.0201) == []


def test_every_failure_is_named_at_once():
    assert len(shortfalls(AFTER, Scores(0.0, 1.0, 1.0, 0.0, 0.0), chance=0.0)) == 4


def test_copying_the_list_fails_and_the_references_pass():
    items, references = held_out()
    chance = measure(references, items).others
    lists = ["\n".join(f"{key}: {value}" for key, value in item.attributes) for item in items]
    assert shortfalls(BEFORE, measure(references, items), chance) == []
    assert any("repeat the list" in reason for reason in shortfalls(BEFORE, measure(lists, items), chance))


def test_naming_everything_any_product_has_fails():
    items, references = held_out()
    everything = " ".join(value for item in items for _, value in item.attributes)
    reasons = shortfalls(BEFORE, measure([everything] * len(items), items), measure(references, items).others)
    assert any("other products" in reason for reason in reasons)


def test_the_recipe_trains_on_products_that_are_not_asked_about(tmp_path):
    chosen = recipe(tmp_path)
    assert (chosen.quant, chosen.data.train, chosen.output) == ("nf4", "seedling:descriptions", str(tmp_path))
    assert all(item.split == "held-out" for item in held_out()[0])
