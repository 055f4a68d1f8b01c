"""The trained tokenizer: nothing is lost on the way to ids and back."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from graft.data.train_tokenizer import SPECIAL, train_bpe
from graft.errors import DataError, UsageError

TEXTS = ["the red lamp", "the green lamp weighs 120 g", "the red tent"] * 20


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(TEXTS, 300)


@given(text=st.text())
@settings(max_examples=200, deadline=None, derandomize=True)
def test_any_text_comes_back_unchanged(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_encoding_begins_with_bos_and_ids_fit_the_vocabulary(tokenizer):
    ids = tokenizer("the red lamp \N{SNOWMAN}")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id and len(tokenizer) <= 300 and max(ids) < len(tokenizer)


def test_special_tokens_are_the_first_ids(tokenizer):
    assert tokenizer.convert_ids_to_tokens([0, 1, 2]) == list(SPECIAL)
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)


def test_frequent_words_become_one_token_and_digits_stay_apart(tokenizer):
    assert tokenizer.tokenize("the lamp 120") == ["the", "Ġlamp", "Ġ", "1", "2", "0"]


def test_training_twice_gives_the_same_tokenizer_and_saving_keeps_it(tokenizer, tmp_path):
    assert train_bpe(TEXTS, 300).get_vocab() == tokenizer.get_vocab()
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=False)
    text = "the red  lamp, é"
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_a_vocabulary_smaller_than_the_bytes_is_refused():
    with pytest.raises(UsageError, match="at least 259"):
        train_bpe(TEXTS, 200)


def test_no_text_is_refused():
    with pytest.raises(DataError, match="no text"):
        train_bpe(iter([]), 300)
