"""Tags of words: entities as seqeval's strict mode reads IOB2, and words that stay the tokens of a text."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft.data.tags import entities, first_orphan, iob2, marked, word_pieces, words_of
from graft.errors import DataError


@pytest.mark.parametrize(
    "tags, expected",
    [  # the cases in which lenient and strict readings differ; strict: IOB2 of seqeval 1.2.2
        ("O O O B-MISC I-MISC I-MISC O", [("MISC", 3, 6)]),
        ("B-PER I-PER B-PER", [("PER", 0, 2), ("PER", 2, 3)]),
        ("I-PER I-PER O", []),
        ("B-PER I-LOC I-LOC", [("PER", 0, 1)]),
        ("B-PER O I-PER", [("PER", 0, 1)]),
        ("B-A B-B I-B", [("A", 0, 1), ("B", 1, 3)]),
        ("B-first-name I-first-name", [("first-name", 0, 2)]),
        ("B I O", [("", 0, 2)]),
        ("", []),
    ],
)
def test_entities_are_read_strictly(tags, expected):
    assert entities(tags.split()) == expected


@given(st.lists(st.sampled_from(["O", "B-X", "I-X", "B-Y", "I-Y"]), max_size=8))
def test_there_is_no_orphan_where_every_inside_belongs_to_an_entity(tags):
    inside = {k for _, first, end in entities(tags) for k in range(first, end)}
    lost = [k for k, tag in enumerate(tags) if tag != "O" and k not in inside]
    assert first_orphan(tags) == (lost[0] if lost else None)


def test_parts_of_speech_are_no_entities():
    assert iob2(["O", "B-PER", "I-PER"]) and not iob2(["NOUN", "O"]) and not iob2(["B-PER", "E-PER"])


def test_entities_are_shown_in_brackets_and_other_tags_behind_a_stroke():
    words = ["Anna", "Nkomo", "of", "Oslo", "left"]
    assert marked(words, ["B-PER", "I-PER", "O", "B-LOC", "O"]) == "[PER Anna Nkomo] of [LOC Oslo] left"
    assert marked(words[3:], ["NOUN", "VERB"]) == "Oslo/NOUN left/VERB"
    assert marked(words[:2], ["B", "I"]) == "[Anna Nkomo]"


def test_words_of_a_text_keep_what_belongs_together():
    assert words_of("An e-reader (3.5 kg)!") == ["An", "e-reader", "(", "3.5", "kg", ")", "!"]
    assert words_of("Don't") == ["Don't"]


@pytest.mark.parametrize("name", ["bpe", "llama", "bert", "t5", "chars"])
def test_words_are_the_tokens_that_they_are_in_a_text(name, request):
    tokenizer = request.getfixturevalue(name)
    sentences = [["the", "cats", "ran"], ["Hello"], ["a", "dog", "on", "a", "mat"]]
    for words, (ids, of) in zip(sentences, word_pieces(sentences, tokenizer), strict=True):
        assert ids == tokenizer(" ".join(words), add_special_tokens=False)["input_ids"]
        assert [word for word, _ in itertools.groupby(of)] == list(range(len(words)))


def test_a_tokenizer_that_cannot_tell_words_is_refused():
    class Slow:
        is_fast = False

    with pytest.raises(DataError, match="fast tokenizer"):
        word_pieces([["a"]], Slow())
