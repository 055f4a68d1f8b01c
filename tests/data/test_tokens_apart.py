"""Rows with the text of every token, as pages colour them."""

import pytest
from transformers import AutoTokenizer

from graft import seedling
from graft.data.report import tokens_apart

TEXT = "The kettle, 42 % off: naïve “prices” 🦦 سلام\n\nEnd.  "


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(seedling.__path__[0])


def test_the_pieces_together_are_the_text(tokenizer):
    ids = tokenizer(TEXT)["input_ids"]
    pieces = tokens_apart(ids, [True] * len(ids), tokenizer)
    assert "".join(text for text, _ in pieces) == tokenizer.decode(ids)
    assert len(pieces) > 15 and all("\ufffd" not in text for text, _ in pieces)


def test_each_piece_says_whether_it_is_learnt(tokenizer):
    ids = tokenizer("one two three four")["input_ids"]
    learns = [place >= 2 for place in range(len(ids))]
    assert [learnt for _, learnt in tokens_apart(ids, learns, tokenizer)] == learns
