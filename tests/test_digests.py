import hashlib
import json
import os
import random
import subprocess
import sys

import pytest
import xxhash

from graft import storage
from graft.storage import digests
from graft.storage.digests import known_digest

SIZE = digests.SMALL + 5


@pytest.fixture
def reads(tmp_path, monkeypatch):
    """The names of the files that are hashed; the cache is an empty folder."""
    monkeypatch.setenv("GRAFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "SETTLED_NS", -1)
    names, real = [], digests._hashed

    def counted(file, kind):
        names.append(os.path.basename(file.name))
        return real(file, kind)

    monkeypatch.setattr(digests, "_hashed", counted)
    return names


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(random.Random(0).randbytes(SIZE))
    return path


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_is_hashed_once_while_it_is_the_same(file, reads):
    assert [known_digest(file) for _ in range(3)] == [sha256(file)] * 3
    assert reads == ["weights"]


@pytest.mark.parametrize("content", [b"", b"abc", bytes(range(256)) * 5000])
def test_both_kinds_are_those_of_their_libraries(content, tmp_path):
    (tmp_path / "file").write_bytes(content)
    assert storage.digest(tmp_path / "file") == hashlib.sha256(content).hexdigest()
    assert storage.digest(tmp_path / "file", "xxh3") == xxhash.xxh3_128_hexdigest(content)


def test_the_kinds_of_one_file_are_remembered_apart(file, reads):
    assert known_digest(file, "xxh3") == xxhash.xxh3_128_hexdigest(file.read_bytes())
    assert [known_digest(file), known_digest(file, "xxh3")] == [sha256(file), known_digest(file, "xxh3")]
    assert reads == ["weights", "weights"]


def test_a_change_that_keeps_size_and_time_of_change_is_seen(file, reads):
    before, status = known_digest(file), file.stat()
    with open(file, "r+b") as opened:
        opened.seek(SIZE // 2)
        opened.write(bytes([file.read_bytes()[SIZE // 2] ^ 1]))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert known_digest(file) == sha256(file) != before


def test_another_file_of_the_same_name_and_time_is_another_file(file, reads, tmp_path):
    known_digest(file)
    status = file.stat()
    other = tmp_path / "other"
    other.write_bytes(random.Random(1).randbytes(SIZE))
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(other, file)
    assert known_digest(file) == sha256(file)


def test_a_file_that_changed_a_moment_ago_is_not_remembered(file, reads, monkeypatch):
    monkeypatch.setattr(digests, "SETTLED_NS", 3_600 * 10**9)
    known_digest(file), known_digest(file)
    assert reads == ["weights"] * 2


@pytest.mark.parametrize("damage", [b"", b"[]", b"{", b'{"sha256": "x", "a": 1}', "flip"])
def test_a_damaged_memory_is_no_memory(file, reads, damage):
    known_digest(file)
    memory = storage.cache_folder("digests") / "files.json"
    raw = bytearray(memory.read_bytes())
    raw[-10] ^= 1  # in a remembered digest
    memory.write_bytes(raw if damage == "flip" else damage)
    assert known_digest(file) == sha256(file)
    assert len(reads) == 2
    known_digest(file)
    assert len(reads) == 2  # the memory was written again


def test_a_memory_that_cannot_be_written_is_no_error(file, reads, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert known_digest(file) == sha256(file)


def test_the_memory_is_bounded_and_forgets_the_oldest(tmp_path, reads, monkeypatch):
    monkeypatch.setattr(digests, "SMALL", 0)
    monkeypatch.setattr(digests, "MOST", 3)
    for name in "abcd":
        (tmp_path / name).write_bytes(name.encode())
        known_digest(tmp_path / name)
    for name in "bcda":
        known_digest(tmp_path / name)
    assert reads == [*"abcd", "a"]


def test_processes_that_remember_at_the_same_time_leave_a_sound_memory(tmp_path):
    program = (
        "import sys; from pathlib import Path; from graft.storage import digests\n"
        "digests.SMALL, digests.SETTLED_NS = 0, -1\n"
        "for path in sorted(Path(sys.argv[1]).iterdir()): digests.known_digest(path)\n"
    )
    files = tmp_path / "files"
    files.mkdir()
    for index in range(20):
        (files / str(index)).write_bytes(bytes([index]))
    environment = os.environ | {"GRAFT_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", program, str(files)]
    racers = [subprocess.Popen(command, env=environment) for _ in range(4)]
    assert [racer.wait(60) for racer in racers] == [0] * 4
    raw = (tmp_path / "cache" / "digests" / "files.json").read_bytes()
    kept = json.loads(storage.unseal(raw))
    assert {entry[-1] for entry in kept.values()} <= {sha256(path) for path in files.iterdir()}
    assert not list((tmp_path / "cache" / "digests").glob(".tmp-*"))


def test_every_flipped_bit_of_a_sealed_object_is_seen():
    raw = storage.seal(json.dumps({"numbers": [1e-05, 2], "text": "x y"}, indent=2).encode())
    assert json.loads(raw).pop("sha256") and storage.unseal(raw)
    for place in range(len(raw)):
        for bit in range(8):
            flipped = raw[:place] + bytes([raw[place] ^ 1 << bit]) + raw[place + 1 :]
            assert storage.unseal(flipped) is None


def test_every_cut_of_a_sealed_object_is_seen():
    raw = storage.seal(b'{"a": [1, 2]}')
    assert not any(storage.unseal(raw[:length]) for length in range(len(raw)))
