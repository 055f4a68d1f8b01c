"""The keywords that type checkers know of `Base.generate` are those that it takes."""

import inspect
from dataclasses import fields
from typing import get_type_hints

import pytest

from graft.generate.generate import complete, generate
from graft.generate.prompts import several
from graft.generate.sampling import Sampling
from graft.generate.writing import Writing


@pytest.mark.parametrize("function", [generate, complete])
def test_every_keyword_is_known_and_no_other(function):
    own = {p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY}
    assert get_type_hints(Writing).keys() == own | {field.name for field in fields(Sampling)}


TURNS = [{"role": "user", "content": "Hello"}]


@pytest.mark.parametrize("one", ["Hello", TURNS, {"messages": TURNS}, [1, 2, 3]])
def test_one_prompt_alone_is_a_list_of_one(one):
    assert several(one) == [one]


@pytest.mark.parametrize("many", [["Hello", "Bye"], [TURNS, "Bye"], [{"messages": TURNS}], [[1, 2], [3]], []])
def test_several_prompts_stay_what_they_are(many):
    assert several(many) == several(tuple(many)) == list(many)
