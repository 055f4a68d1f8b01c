"""`graft.train` has the keys of a recipe's `train:` as keywords, and answers wrong ones."""

import inspect

import pytest

import graft
from graft.errors import UsageError
from graft.recipe.keywords import require_keys
from graft.recipe.tree import Recipe, Train, explain


def test_the_signature_has_every_key_with_its_default():
    shown = inspect.signature(graft.train).parameters
    for key, field in Train.model_fields.items():
        assert shown[key].default == field.get_default(call_default_factory=True)
        assert shown[key].kind is inspect.Parameter.KEYWORD_ONLY
    assert not any(parameter.kind is parameter.VAR_KEYWORD for parameter in shown.values())
    assert shown["lr"].annotation is float and shown["samples"].annotation == list[str]


def test_the_docstring_has_the_help_of_every_key():
    for key in Train.model_fields:
        assert f"{key}: {explain()[f'train.{key}']}" in " ".join(graft.train.__doc__.split())


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("lrr", "did you mean lr"),
        ("epoch", "did you mean epochs"),
        ("max_length", 'data={"train": ..., "max_length": ...}'),
        ("metrics", 'evaluate={"metrics": ...}'),
        ("quant", "quant= of graft.load"),
        ("zzzz", "see help(graft.train)"),
    ],
)
def test_a_wrong_keyword_is_answered_by_the_nearest_or_by_its_place(word, said):
    with pytest.raises(UsageError, match=rf"graft.train\({word}=1\): unknown keyword") as caught:
        graft.train(None, None, None, **{word: 1})
    assert said in caught.value.remedy


def test_keys_and_the_words_of_other_trainers_pass():
    require_keys("graft.train", Train, {"lr": 1e-4, "learning_rate": 1e-4, "warmup": 0.0})
    assert Recipe.model_fields.keys() >= {"data", "evaluate"}
