"""Arrays in safetensors: what we write the library reads, and the other way round."""

from array import array

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from graft.data import scratch, token_file
from graft.data.scratch import Numbers

ARRAYS = {
    "train.learnt": np.array([1, 0, 1], dtype="u1"),
    "train.ids": np.array([4, -5, 6], dtype="i4"),
    "train.ids.ends": np.array([2, 2**40], dtype="i8"),
    "eval.targets": np.array([], dtype="i4"),
}


def ours():
    codes = {"uint8": "B", "int32": "i", "int64": "q"}
    return {name: Numbers(codes[str(a.dtype)], a.tolist()) for name, a in ARRAYS.items()}


@pytest.mark.parametrize("most", [0, 1 << 20])
def test_the_library_reads_what_we_write(most, tmp_path, monkeypatch):
    monkeypatch.setattr(token_file, "MOST", most)
    arrays = ours()
    token_file.write(tmp_path / "a.safetensors", {**arrays, "train.file": array("i", [7])})
    found = load_file(tmp_path / "a.safetensors")
    assert found.keys() == {*ARRAYS, "train.file"} and found["train.file"].tolist() == [7]
    for name, expected in ARRAYS.items():
        assert found[name].dtype == expected.dtype and np.array_equal(found[name], expected)
    again = token_file.read(tmp_path / "a.safetensors")
    assert {name: again[name] for name in arrays} == arrays


def test_we_read_what_the_library_writes(tmp_path):
    save_file(ARRAYS, tmp_path / "a.safetensors")
    assert token_file.read(tmp_path / "a.safetensors") == ours()


def test_numbers_from_the_disk_are_written_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("GRAFT_CACHE", str(tmp_path))
    monkeypatch.setattr(scratch, "MOST", 40)
    monkeypatch.setattr(scratch, "BLOCK", 7)
    numbers = Numbers("i")
    for i in range(100):
        numbers.append(i)
    token_file.write(tmp_path / "a.safetensors", {"x": numbers})
    assert load_file(tmp_path / "a.safetensors")["x"].tolist() == list(range(100))
