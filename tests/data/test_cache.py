"""An entry of the token cache is used only as it was written; anything else is no entry."""

import shutil

import pytest
from flipped_bits import every_byte
from safetensors.numpy import load_file, save_file

from graft.data import cache
from graft.data.encode import Example, Examples


@pytest.fixture
def entry(tmp_path, monkeypatch):
    """The folder of an entry of three examples."""
    monkeypatch.setenv("GRAFT_CACHE", str(tmp_path))
    rows = Examples()
    for index in range(3):
        rows.add(
            Example(ids=[4, 5, 6 + index], labels=[-100, 5, 6 + index], source=f"rows.jsonl:{index + 1}")
        )
    cache.save("a1b2", {"train": rows}, {"rows": 3})
    assert list(cache.load("a1b2")[0]["train"]) == list(rows) and cache.load("a1b2")[1] == {"rows": 3}
    return cache.folder() / "a1b2"


@pytest.mark.parametrize("name", ["tokens.safetensors", "data.json"])
def test_every_flipped_bit_of_an_entry_makes_it_no_entry(entry, name):
    for _ in every_byte(entry / name, bits=2):
        assert cache.load("a1b2") is None
    assert cache.load("a1b2") is not None


@pytest.mark.parametrize("name", ["tokens.safetensors", "data.json"])
def test_a_cut_or_missing_file_makes_it_no_entry(entry, name):
    sound = (entry / name).read_bytes()
    for part in range(32):
        (entry / name).write_bytes(sound[: len(sound) * part // 32])
        assert cache.load("a1b2") is None
    (entry / name).unlink()
    assert cache.load("a1b2") is None


def test_a_sound_file_with_other_classes_or_ids_is_no_entry(entry):
    tensors = load_file(entry / "tokens.safetensors")
    tensors["train.ids"][0] = 10**6  # outside any vocabulary
    save_file(tensors, entry / "tokens.safetensors")
    assert cache.load("a1b2") is None


def test_the_entry_of_other_rows_under_this_name_is_no_entry(entry):
    shutil.copytree(entry, entry.with_name("c3d4"))
    assert cache.load("c3d4") is None


def test_an_entry_that_was_changed_is_written_again(entry):
    rows = cache.load("a1b2")[0]
    (entry / "data.json").write_text("{}")
    cache.save("a1b2", rows, {"rows": 3})
    assert cache.load("a1b2")[1] == {"rows": 3}
