"""The measures of descriptions, against cases counted by hand."""

import pytest

from graft.seedling import coverage as measure
from graft.seedling.products import Product

LAMP = Product((("name", "Aroda 7"), ("type", "desk lamp"), ("colour", "deep green"), ("price", "$34")))
TENT = Product((("name", "Belita"), ("type", "tent"), ("colour", "pale green"), ("price", "$340")))


@pytest.mark.parametrize(
    ("text", "value", "stated"),
    [
        ("In Deep\n  GREEN.", "deep green", True),
        ("a deep, green lake", "deep green", False),
        ("evergreen", "green", False),
        ("greens", "green", False),
        ("for $34.", "$34", True),
        ("for $349", "$34", False),
        ("for $34.50", "$34", False),
        ("weighs 11.4 kg", "1.4 kg", False),
        ("weighs 1.4 kg", "4 kg", False),
        ("weighs 1.4 kg, no more", "1.4 kg", True),
        ("the Aroda 70", "Aroda 7", False),
        ("A children's room", "children's rooms", False),
        ("(cold wash)", "cold wash", True),
        ("", "red", False),
    ],
)
def test_a_value_is_stated_as_whole_words_only(text, value, stated):
    assert measure.states(text, value) is stated


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("The Aroda 7 is a desk lamp in deep green for $34.", 1.0),
        ("The Aroda 7 is a lamp in green for $34.", 0.5),
        ("Buy it.", 0.0),
    ],
)
def test_coverage_is_the_share_of_values_that_the_text_states(text, share):
    assert measure.coverage(text, LAMP) == share


def test_coverage_against_others_pairs_each_text_with_every_other_product():
    texts = ["A desk lamp, a tent", "Belita, deep green"]
    # first text against the tent: 1 of 4; second against the lamp: 1 of 4
    assert measure.against_others(texts, [LAMP, TENT]) == pytest.approx(0.25)


def test_a_repeated_list_is_verbatim_and_a_sentence_is_not():
    text = "name: Aroda 7\ntype: desk lamp\ncolour: deep green\nprice: $34"
    assert measure.is_verbatim(text, LAMP) and measure.is_verbatim(text.replace("\n", " "), LAMP)
    assert not measure.is_verbatim("The Aroda 7 is a desk lamp. Its price: $34.", LAMP)
    assert measure.verbatim_share([text, "no"], [LAMP, LAMP]) == 0.5


def test_distinctness_counts_word_pairs_and_whole_texts():
    assert measure.distinct_2(["a b c", "a b d"]) == pytest.approx(3 / 4)  # ab bc ab bd
    assert measure.distinct_2(["one", ""]) == 0.0
    assert measure.unique_share(["A b", "a  b", "c", "d"]) == 0.75
