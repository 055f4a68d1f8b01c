"""Calls with wrong names are answered by the nearest one."""

import copy
import dataclasses
import pickle
from dataclasses import dataclass

import pytest

import graft
from graft.core.by_name import answered
from graft.core.method import Method
from graft.core.registry import find, names
from graft.core.schema import Rank
from graft.errors import UsageError


@pytest.mark.parametrize(
    ("settings", "meant"),
    [
        ({"rank": 4}, "did you mean r or rank_pattern"),
        ({"alpha": 32}, "did you mean lora_alpha or alpha_pattern"),
        ({"dropout": 0.1}, "did you mean lora_dropout"),
        ({"target_module": "q_proj"}, "did you mean target_modules"),
        ({"zzz": 1}, "see help(LoRA)"),
    ],
)
def test_an_unknown_setting_is_answered_by_the_nearest(settings, meant):
    with pytest.raises(UsageError) as caught:
        graft.LoRA(**settings)
    assert caught.value.given.startswith(f"LoRA({next(iter(settings))}=")
    assert meant in caught.value.remedy


@pytest.mark.parametrize(
    ("make", "call"),
    [
        (lambda: graft.LoRA(16), "LoRA(r=16)"),
        (lambda: graft.LoRA(["q_proj"]), "LoRA(target_modules=['q_proj'])"),
        (lambda: graft.PromptTuning(20, "TEXT"), "PromptTuning(num_virtual_tokens=20)"),
        (lambda: graft.Subset(2), "Subset(top_layers=2)"),
    ],
)
def test_a_value_without_a_name_is_answered_by_how_it_is_written(make, call):
    with pytest.raises(UsageError, match="with its name") as caught:
        make()
    assert caught.value.remedy == f"settings are given by name: {call}"


@pytest.mark.parametrize("name", names())
def test_every_setting_of_every_method_is_given_by_name_alone(name):
    cls = find(name)
    assert all(field.kw_only for field in dataclasses.fields(cls))
    with pytest.raises(UsageError, match="rnak"):
        cls(rnak=1)


@pytest.mark.parametrize("name", names())
def test_a_method_is_shown_as_the_call_that_makes_it(name):
    cls = find(name)
    assert repr(cls(lr=0.5)) == f"{cls.__name__}(lr=0.5)"
    assert eval(repr(cls(lr=0.5)), vars(graft) | {cls.__name__: cls}) == cls(lr=0.5)


def test_a_method_is_copied_and_changed_as_before():
    method = graft.LoRA(r=4, rank_pattern={"q_proj": 2})
    assert copy.deepcopy(method) == pickle.loads(pickle.dumps(method)) == method
    assert dataclasses.replace(method, r=2) == graft.LoRA(r=2, rank_pattern={"q_proj": 2})
    assert repr(method) == "LoRA(r=4, rank_pattern={'q_proj': 2})"


def test_a_method_of_the_users_own_is_answered_too():
    @dataclass(frozen=True, kw_only=True)
    class Mine(Method):
        strength: Rank = 1

    class Own(Method):
        def __init__(self, place):
            object.__setattr__(self, "place", place)

    assert Mine(strength=2).strength == 2
    with pytest.raises(UsageError, match="did you mean strength"):
        Mine(strenght=2)
    with pytest.raises(UsageError, match=r"Mine\(strength=2\)"):
        Mine(2)
    assert Own("there").place == Own(place="there").place == "there"  # as its own __init__ says
    with pytest.raises(UsageError, match="did you mean place"):
        Own(plaice="there")


def test_a_function_is_answered_by_its_own_keywords():
    @answered
    def export(base, folder, *, to="hf"):
        return base, folder, to

    assert export(1, folder=2, to="x") == (1, 2, "x")
    with pytest.raises(UsageError, match=r"graft.export\(too='hf'\): unknown keyword.*did you mean to\?"):
        export(1, 2, too="hf")
    with pytest.raises(UsageError, match=r"missing.*'folder'.*graft.export\(base, folder, ...\)"):
        export(1)
    with pytest.raises(UsageError, match="too many positional"):
        export(1, 2, 3)


def test_an_error_inside_a_function_stays_its_own():
    @answered
    def broken(base):
        raise TypeError("inside")

    with pytest.raises(TypeError, match="inside"):
        broken(1)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: graft.load("seedling", quantt="nf4"), "did you mean quant?"),
        (lambda: graft.load(None), 'graft.load("seedling")'),
        (lambda: graft.load(""), 'graft.load("seedling")'),
        (lambda: graft.export("seedling", "out"), "graft.load(...)"),
        (lambda: graft.train("seedling", "x", "rows.jsonl"), "graft.load(...)"),
        (lambda: graft.blend(None, {"a": 1.0}, "b"), "graft.load(...)"),
        (lambda: graft.plan("recipe.yaml", overides=[]), "did you mean overrides?"),
        (lambda: graft.run("recipe.yaml", observr=None), "did you mean observer?"),
    ],
)
def test_the_public_functions_answer_wrong_arguments(call, said):
    with pytest.raises(UsageError) as caught:
        call()
    assert said in caught.value.remedy
