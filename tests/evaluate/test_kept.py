"""A judge's answers are read from their file only as they were written; what is changed is asked again."""

import json

import pytest
from flipped_bits import every_byte

from graft.errors import Notice
from graft.evaluate.kept import Kept

ASKED = [{"role": "user", "content": "Which is better?"}]


@pytest.mark.filterwarnings("ignore::graft.errors.Notice")
def test_no_flipped_bit_changes_an_answer(tmp_path):
    path = tmp_path / "answers.jsonl"
    Kept(path).put(ASKED, "1")
    Kept(path).put("another", "2")
    kept = set()
    for _ in every_byte(path, bits=2):
        found = Kept(path)
        kept |= {(found.get(ASKED), found.get("another"))}
    assert kept == {(None, "2"), ("1", None), (None, None)}
    assert (Kept(path).get(ASKED), Kept(path).get("another")) == ("1", "2")


def test_a_changed_answer_is_told_and_asked_again(tmp_path):
    path = tmp_path / "answers.jsonl"
    Kept(path).put(ASKED, "1")
    path.write_text(path.read_text().replace('"answer": "1"', '"answer": "2"'))
    with pytest.warns(Notice, match="1 lines .* are not answers; they are asked again"):
        assert Kept(path).get(ASKED) is None


def test_lines_without_a_seal_are_read_as_older_ones_are(tmp_path):
    path = tmp_path / "answers.jsonl"
    Kept(path).put(ASKED, "1")
    entry = json.loads(path.read_text())
    del entry["sha256"]
    path.write_text(json.dumps(entry) + "\n")
    assert Kept(path).get(ASKED) == "1"
