"""The usual models. Right values: their published counts."""

import pytest

from graft.planning import usual
from graft.planning.sketch import sketch, unreal
from graft.planning.usual import USUAL, config_of_usual, largest_model
from graft.recipe import read


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("1.1B (TinyLlama)", 1_100_048_384),
        ("3B (Llama 3.2)", 3_212_749_824),
        ("7B (Llama 2)", 6_738_415_616),
        ("8B (Llama 3.1)", 8_030_261_248),
        ("70B (Llama 3.1)", 70_553_706_496),
    ],
)
def test_a_usual_model_has_its_published_count(name, parameters):
    with unreal():
        assert sketch(config_of_usual(name)).count() == parameters


def test_the_largest_model_is_the_last_that_fits(monkeypatch):
    names = list(USUAL)
    for count in range(len(names) + 1):
        monkeypatch.setattr(usual, "_fits", lambda recipe, name, count=count: name in names[:count])
        assert largest_model(read({})) == (names[count - 1] if count else None)
