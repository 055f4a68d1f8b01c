"""Expressions of strangers mean what they mean to `re`, and end."""

import random
import re
import time

import pytest

from graft.errors import UsageError
from graft.layers.patterns import LONGEST, first_at_end, whole

NAMES = [
    f"model.layers.{block}.{part}"
    for block in (0, 1, 11)
    for part in ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj", "input_layernorm")
] + ["lm_head", "model.embed_tokens", "transformer.h.0.attn.c_attn"]
PIECES = [
    *"aqv_plm.01|()[]*+?^$\\:-", "proj", "layers", "self_attn", ".*", r"\d", "(?:", "(?=", "(?!", "(?i)",
    "{2}", "{1,3}", "[a-z]", "[^.]", "[[", "[.]", "[:", "&&", r"\.", r"\b", "*?", "++", "(?>", "(?P<n>",
]  # fmt: skip
BOMBS = [
    r"(([a-z_]|[a-z0-9_.])*)*[!?]",
    ".*" * 12 + "[!?]",
    r"(?=((.)*)*[!?])",
    r"(?!((.)*)*[!?])((.+)+)+[!?]",
    "(a{9999}){9999}",
    "a{999999999}",
    "(?:(?:.?){99}){99}[!?]",
]


def theirs(pattern, name, whole=True):
    """Return what `re` says, or "error"."""
    try:
        compiled = re.compile(pattern)
    except re.error:
        return "error"
    return (compiled.fullmatch if whole else compiled.match)(name) is not None


def ours(pattern, name):
    try:
        return whole(pattern, name)
    except UsageError:
        return "error"


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_an_expression_means_what_it_means_to_re():
    chance, matched = random.Random(0), 0
    for _ in range(3000):
        pattern = "".join(chance.choice(PIECES) for _ in range(chance.randint(1, 7)))
        for name in chance.sample(NAMES, 3):
            assert ours(pattern, name) == theirs(pattern, name), (pattern, name)
            matched += theirs(pattern, name) is True
    assert matched > 50


@pytest.mark.parametrize(
    "pattern", ["q_proj", "attn.q_proj", "self.attn", "q_.*", r"\d.*q_proj", "proj", "(q|v)_proj"]
)
def test_a_key_of_a_pattern_matches_the_end_of_a_name_as_in_peft(pattern):
    for name in NAMES:
        wanted = re.match(rf"(.*\.)?({pattern})$", name) is not None
        assert (first_at_end([pattern], name) is not None) == wanted, name


@pytest.mark.parametrize("pattern", BOMBS)
def test_an_expression_that_takes_too_long_ends_in_a_named_error(pattern):
    start = time.thread_time()
    with pytest.raises(UsageError, match="regular expression"):
        for number in range(100_000):
            whole(pattern, f"model.layers.{number}.self_attn.q_proj_aaaaaaaaaaaaaaaaaaaaaaaaaaaaa")
    assert time.thread_time() - start < 5  # of what is a second


@pytest.mark.parametrize(
    "pattern", ["(", "[", "*", "(?P<n>", "(" * 5000, "x{e<=2}", "[[:alpha:]]", "a" * (LONGEST + 1)]
)
def test_what_is_no_expression_of_re_or_another_to_regex_is_a_usage_error(pattern):
    with pytest.raises(UsageError, match=r"regular expression|letters"):
        whole(pattern, "lm_head")
