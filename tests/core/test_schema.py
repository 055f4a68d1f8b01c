"""Every setting of every method is of its type and in its range, in Python, in recipes and in files."""

import dataclasses
import math

import pytest

from graft import LoRA
from graft.core.cards import cards
from graft.core.registry import find
from graft.core.schema import Between, fits, in_words, misfits, schema_of, shown, type_of
from graft.errors import UsageError
from graft.recipe.methods import resolve_methods

# Values that no field of a type takes, and values that it does.
REFUSED = {
    "int": [True, "16", 1.0, None, 2**63, [1]],
    "float": [True, "1", math.nan, math.inf, -math.inf, 10**400, None],
    "bool": [0, 1, "true", None],
    "str": [5, None, ["a"], b"a"],
    "Rank": [0, -1, 4097, 2_000_000_000, True, 8.0],
    "Share": [1.0, -0.1, math.nan],
    "Scale": [10_001, -10_001.0],
    "tuple[str, ...]": ["lm_head", [5], [["a"]], {"a": 1}],
    "dict[str, Rank]": [{"q_proj": 2_000_000_000}, {"q_proj": True}, {1: 2}, [["q_proj", 2]]],
    "dict[str, list[Id]]": [{"embed_tokens": ["a"]}, {"embed_tokens": 5}, {"embed_tokens": [-1]}],
}
TAKEN = {
    "int": [0, -(2**63), 2**63 - 1],
    "float": [0, 1, -2.5],
    "Rank": [1, 4096],
    "Share": [0, 0.999],
    "tuple[str, ...]": [[], ["a"], ("a", "b")],
    "dict[str, Rank]": [{}, {"q_proj": 2}],
    "str | tuple[str, ...]": ["a", ["a"]],
    "Rank | None": [None, 3],
}


@pytest.mark.parametrize("kind", REFUSED)
def test_values_of_another_type_or_out_of_range_do_not_fit(kind):
    assert not [value for value in REFUSED[kind] if fits(value, type_of(kind))]


@pytest.mark.parametrize("kind", TAKEN)
def test_values_of_the_type_fit_whole_numbers_for_floats_and_lists_for_tuples_too(kind):
    assert all(fits(value, type_of(kind)) for value in TAKEN[kind])


@pytest.mark.parametrize("name", sorted(cards()))
def test_the_card_and_the_class_have_one_schema(name):
    by_card = {key: in_words(type_of(setting.type)) for key, setting in cards()[name].settings.items()}
    assert by_card == {key: in_words(kind) for key, kind in schema_of(find(name)).items()}


@pytest.mark.parametrize("name", sorted(cards()))
def test_every_number_of_every_method_has_a_range_or_is_any_number_of_64_bits(name):
    for field, kind in schema_of(find(name)).items():
        for value in (math.nan, math.inf, 10**30, -(10**30), 1e300):
            assert field in misfits({field: kind}, {field: value}) or isinstance(value, float), (field, value)


@pytest.mark.parametrize("name", sorted(cards()))
def test_a_setting_of_another_type_is_a_usage_error_that_names_it(name):
    cls = find(name)
    for field in dataclasses.fields(cls):
        with pytest.raises(UsageError, match=field.name):
            cls(**{field.name: b"bytes"})


@pytest.mark.parametrize(
    ("setting", "value"),
    [("r", "16"), ("r", 0), ("lora_alpha", math.nan), ("lora_alpha", 1e30), ("rank_pattern", {"q": 5000})],
)
def test_python_and_recipes_refuse_the_same(setting, value):
    with pytest.raises(UsageError, match=setting):
        LoRA(**{setting: value})
    problems = resolve_methods({"method": {"name": "lora", setting: value}}, [])
    assert list(problems) == [f"method.{setting}"]


def test_a_range_says_which_ends_are_part_of_it():
    assert str(Between(0, 1, below=True)) == "from 0 to below 1"
    assert str(Between(0, 1e6, above=True)) == "above 0 to 1e+06"
    assert Between(0, 1, above=True).holds(1) and not Between(0, 1, above=True).holds(0)


def test_a_value_is_shown_short_whatever_it_is():
    assert len(shown([[["x" * 1000] * 1000] * 1000])) <= 200
    assert "too long" in shown(10**5000)
