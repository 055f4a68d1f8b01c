"""A record with a digest is read as it was written, or its damage is named."""

import json

import pytest

from graft import storage
from graft.errors import CheckpointError

FACTS = {"steps": 3, "best": {"step": 2, "loss": 0.1}, "text": "ä", "pair": (1, None), "nan": float("nan")}


def test_a_record_comes_back_with_its_order(tmp_path):
    storage.write_record(tmp_path / "a.json", FACTS)
    read = storage.read_record(tmp_path / "a.json")
    assert list(read) == list(FACTS) and read["pair"] == [1, None] and read["best"] == FACTS["best"]
    assert storage.read_record(tmp_path / "b.json") is None


def test_equal_facts_make_equal_bytes_where_that_is_asked_for(tmp_path):
    storage.write_record(tmp_path / "a", FACTS, sort=True)
    storage.write_record(tmp_path / "b", dict(reversed(FACTS.items())), sort=True)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_b13_a_flipped_bit_of_a_record_is_seen(tmp_path):
    path = tmp_path / "a.json"
    storage.write_record(path, FACTS | {"nan": None})
    written = path.read_bytes()
    for place in range(0, 8 * len(written), 5):
        broken = bytearray(written)
        broken[place // 8] ^= 1 << place % 8
        path.write_bytes(broken)
        with pytest.raises(CheckpointError, match=r"a\.json"):
            storage.read_record(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 500,
        b"[]",
        b"null",
        b"5",
        b'"x"',
        b"{}",
        b"[" * 100_000,
        b'{"sha256": 5}',
        b"\xff\xfe",
        b"{",
    ],
    ids=lambda content: repr(content[:8]),
)
def test_b13_a_record_of_another_shape_is_named(content, tmp_path):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.json"):
        storage.read_record(tmp_path / "a.json")


def test_b13_every_cut_of_a_record_is_seen_and_so_is_a_folder_in_its_place(tmp_path):
    path = tmp_path / "a.json"
    storage.write_record(path, FACTS)
    written = path.read_bytes()
    for length in range(len(written)):
        path.write_bytes(written[:length])
        with pytest.raises(CheckpointError):
            storage.read_record(path)
    path.unlink(), path.mkdir()
    with pytest.raises(CheckpointError):
        storage.read_record(path)


def test_a_record_is_ordinary_json(tmp_path):
    storage.write_record(tmp_path / "a.json", {"steps": 1})
    assert json.loads((tmp_path / "a.json").read_text())["steps"] == 1
