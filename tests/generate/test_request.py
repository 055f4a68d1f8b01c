"""A request: ends, stops that are held back, pieces that add up to the text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from graft.generate.request import Request, continuation, held_back
from graft.generate.sampling import Sampling

END = 256


def of_bytes():
    """Return a tokenizer whose tokens are bytes, and one special end: a character may take four of them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>")


def of_words():
    """Return one of Llama's kind: it drops the blank in front of what it decodes first."""
    words = ["<unk>", "▁the", "▁cat", "▁sat", "s", ".", "▁dog"]
    made = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [], unk_token="<unk>"))
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(content=" ", left=1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=made)


BYTES, WORDS = of_bytes(), of_words()


def fed(text, *, prompt="a", tokenizer=BYTES, **how):
    """Write a text token by token. Returns the request and the pieces that were streamed."""
    pieces = []
    tokens = tokenizer(text)["input_ids"] if isinstance(text, str) else text
    request = Request(
        tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt,
        how=Sampling(**{"max_new_tokens": len(tokens), **how}),
        ends=frozenset([END]),
        tokenizer=tokenizer,
        on_text=pieces.append,
    )
    for token in tokens:
        if request.take(token):
            break
    return request, pieces


def test_an_end_token_is_a_token_of_the_completion_and_not_of_its_text():
    request, pieces = fed([*BYTES("cat")["input_ids"], END, 5])
    done = request.completion
    assert (done.text, done.finish_reason, done.tokens[-1]) == ("cat", "stop", END)
    assert "".join(pieces) == "cat" and done.logprobs is None


def test_a_text_ends_at_its_length():
    request, pieces = fed("abcdef", max_new_tokens=4)
    assert (request.completion.text, request.completion.finish_reason) == ("abcd", "length")
    assert pieces == ["a", "b", "c", "d"]


def test_nothing_that_may_begin_a_stop_is_given_out():
    request, pieces = fed("one </b </s> two", stop=["</s>"])
    assert request.completion.text == "one </b " == "".join(pieces)
    assert request.completion.finish_reason == "stop"
    assert not any("<" in piece and "</b" not in piece for piece in pieces)


def test_what_was_held_back_is_given_out_at_the_end():
    request, pieces = fed("so </", stop=["</s>"])
    assert request.completion.text == "so </" and pieces[-1] == "</"


def test_a_character_is_given_out_whole():
    request, pieces = fed("né 😀!")
    assert pieces == ["n", "é", " ", "😀", "!"] and request.completion.text == "né 😀!"


def test_bytes_that_stay_unfinished_are_in_the_text():
    request, pieces = fed(BYTES("é")["input_ids"][:1])
    assert request.completion.text == "\ufffd" == "".join(pieces)


@pytest.mark.parametrize("cut", [1, 2, 3])
@pytest.mark.parametrize("before", ["x ", "\ufffd"])
def test_a_prompt_may_end_inside_a_character(cut, before):
    """The character is part of the text, and the pieces are the text."""
    ids = BYTES("😀 end")["input_ids"]
    request, pieces = fed(ids[cut:], prompt=[*BYTES(before)["input_ids"], *ids[:cut]])
    assert request.completion.text == "😀 end" == "".join(pieces)
    request, pieces = fed(ids[cut:], prompt=ids[:cut], stop=["en"])
    assert request.completion.text == "😀 " == "".join(pieces)


def test_a_character_that_is_never_completed_stays_in_the_prompt():
    request, pieces = fed("no", prompt=BYTES("x 😀")["input_ids"][:4])
    assert request.completion.text == "no" == "".join(pieces)


def test_stops_do_not_count_before_the_least_length():
    request, _ = fed("a.b.c", stop=["."], min_new_tokens=3)
    assert request.completion.text == "a.b"


def test_blanks_are_those_of_the_text_behind_its_prompt():
    request, pieces = fed([2, 4, 3, 5], prompt=[1], tokenizer=WORDS)
    assert request.completion.text == " cats sat." == "".join(pieces)
    assert continuation(WORDS, [], [2, 4]) == "cats"


@given(
    text=st.text(alphabet="ab<c/é😀", max_size=30),
    stops=st.lists(st.text(alphabet="ab<c/é", min_size=1, max_size=4), max_size=3),
)
def test_pieces_add_up_to_the_text_in_front_of_the_first_stop(text, stops):
    request, pieces = fed(text + "!", stop=stops)
    expected = text + "!"
    for end in range(len(expected) + 1):  # the first moment at which a stop is complete
        found = [expected[:end].find(stop) for stop in stops if stop in expected[:end]]
        if found:
            expected = expected[: min(found)]
            break
    assert request.completion.text == "".join(pieces) == expected


@pytest.mark.parametrize(("text", "held"), [("abc", 0), ("x<", 1), ("x</s", 3), ("</s>x", 0), ("", 0)])
def test_what_is_held_is_the_longest_start_of_a_stop(text, held):
    assert held_back(text, ["</s>", "<a"]) == held


def test_the_generator_depends_on_seed_and_index_alone():
    def draws(seed, index):
        request = Request([1], how=Sampling(seed=seed), index=index)
        return [request.draw() for _ in range(3)]

    assert draws(3, 0) == draws(3, 0) != draws(3, 1)
    assert len({tuple(draws(seed, index)) for seed in (0, 1, -1) for index in (0, 1)}) == 6
