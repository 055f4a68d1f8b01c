"""Numbers and names that lie on the disk are those that were put there."""

from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graft.data import scratch
from graft.data.scratch import Numbers, Scratch, Sources


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """Write arrays of more than 64 bytes to the disk, and read 10 numbers at a time."""
    monkeypatch.setenv("GRAFT_CACHE", str(tmp_path))
    monkeypatch.setattr(scratch, "MOST", 64)
    monkeypatch.setattr(scratch, "BLOCK", 10)


@pytest.mark.parametrize("code", ["B", "i", "q"])
@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 100])
def test_numbers_are_an_array_wherever_they_lie(code, count, tiny):
    expected = array(code, [(7 * i) % 100 for i in range(count)])
    found = Numbers(code)
    for at in range(0, count, 5):
        found.extend(expected[at : at + 5])
    assert len(found) == count and list(found) == list(expected) and found[:] == expected
    assert b"".join(block.tobytes() for block in found.blocks()) == expected.tobytes()
    assert found.largest() == max(expected, default=0) and found.count(7) == expected.count(7)
    assert found == Numbers(code, expected) and (not count or found != Numbers(code, expected[1:]))
    for i in range(-count, count):
        assert found[i] == expected[i]
    for begin in range(0, count + 1, 3):
        for end in range(begin, count + 1, 4):
            assert found[begin:end] == expected[begin:end]
    with pytest.raises(IndexError):
        found[count]


def test_what_lies_on_the_disk_is_not_in_memory(tiny):
    found = Numbers("q", range(5))
    for i in range(1000):
        found.append(i)
    assert len(found._last) <= 8 and len(found) == 1005


def test_a_file_is_beside_the_cache_and_nobody_sees_it(tmp_path, monkeypatch):
    monkeypatch.setenv("GRAFT_CACHE", str(tmp_path / "cache"))
    file = Scratch()
    assert file.append(b"abc") == 0 and file.append(b"de") == 3 and file.read(2, 2) == b"cd"
    assert list((tmp_path / "cache" / "data").iterdir()) == []


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "occupied").write_text("")
    monkeypatch.setenv("GRAFT_CACHE", str(tmp_path / "occupied"))
    file = Scratch()
    file.append(b"abc")
    assert file.read(0, 3) == b"abc"


DIGITS = st.text("0123456789", max_size=20)
NAMES = st.one_of(
    st.builds("a.jsonl:{}".format, DIGITS), st.builds("train row {}".format, DIGITS), st.text(max_size=4)
)


@given(st.lists(NAMES))
@settings(max_examples=50, deadline=None)
def test_names_come_back_as_they_were(names):
    assert list(Sources(names)) == names and Sources(names) == names
    again = Sources.of(Sources(names).files, Sources(names).file, Sources(names).line)
    again.append("more.jsonl:3")
    assert again == [*names, "more.jsonl:3"]


def test_names_of_one_file_take_twelve_bytes_each():
    names = Sources(f"rows.jsonl:{i}" for i in range(1, 1000))
    assert names.files == ["rows.jsonl:"] and names.file.itemsize + names.line.itemsize == 12
    assert names[998] == "rows.jsonl:999" and names[1:3] == ["rows.jsonl:2", "rows.jsonl:3"]
