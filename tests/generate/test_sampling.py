"""Settings that mean nothing are refused by their name."""

import math

import pytest

from graft.errors import UsageError
from graft.generate.sampling import Sampling


@pytest.mark.parametrize(
    "setting",
    [
        {"temperature": math.nan}, {"temperature": -1.0}, {"temperature": 0.0}, {"temperature": math.inf},
        {"top_p": 0.0}, {"top_p": 1.5}, {"top_p": math.nan}, {"top_k": -1}, {"top_k": 2.5},
        {"min_p": -0.1}, {"min_p": 1.1}, {"repetition_penalty": 0.0}, {"presence_penalty": 2.1},
        {"frequency_penalty": -3}, {"max_new_tokens": 0}, {"min_new_tokens": -1}, {"stop": [""]},
        {"stop_token_ids": [-1]}, {"logit_bias": {3: 101}}, {"logit_bias": {"a": 1}}, {"logit_bias": [3]},
        {"seed": 0.5}, {"seed": 2**64}, {"logprobs": -1}, {"logprobs": True},
    ],
)  # fmt: skip
def test_settings_that_mean_nothing_are_refused_by_name(setting):
    with pytest.raises(UsageError, match=next(iter(setting))):
        Sampling(**setting)


def test_one_stop_may_stand_without_a_list():
    assert Sampling(stop="</s>").stop == ("</s>",)
