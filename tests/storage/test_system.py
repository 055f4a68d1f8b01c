"""What Linux alone has is needed nowhere: pretended macOS and Windows run the same commands."""

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from graft.data import rendering
from graft.data.rows import BadRow
from graft.data.sandbox import Sandbox, TooMuch
from graft.errors import CheckpointError, DataError
from graft.storage import lock, system, writes

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "tests/support/other_system.py"


@pytest.mark.parametrize("kind", [pytest.param("macos", marks=pytest.mark.slow), "windows"])
def test_every_file_imports_and_the_commands_run(kind, tmp_path):
    environment = os.environ | {
        "PYTHONPATH": str(ROOT / "src"),
        "GRAFT_CACHE": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    (tmp_path / "work").mkdir()
    command = [sys.executable, str(PROGRAM), kind, str(tmp_path / "work")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)
    assert done.returncode == 0 and done.stdout.endswith("done\n"), done.stdout[-2000:] + done.stderr[-4000:]


def test_modules_that_one_system_alone_has_are_imported_in_one_place():
    alone = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "msvcrt", "winreg", "posix"}
    found = set()
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if alone & set(names):
                found.add(path.name)
    assert found == {"system.py", "sandbox.py", "unpickle.py"}  # the last two run in processes of their own


def test_what_one_system_alone_has_is_asked_for_in_one_place():
    alone = {
        "sysconf",
        "fork",
        "killpg",
        "getuid",
        "geteuid",
        "fchmod",
        "posix_fallocate",
        "sched_getaffinity",
    }
    alone |= {"O_DIRECTORY", "SIGKILL", "SIGHUP", "SIGPIPE", "SIGALRM", "MADV_DONTNEED", "getpagesize"}
    found = set()
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr in alone:
                found.add((path.name, node.attr))
    asked = {("system.py", "posix_fallocate"), ("system.py", "MADV_DONTNEED")}
    assert found == {*asked, ("mapped.py", "MADV_DONTNEED")}  # where /proc has told what is mapped


def test_memory_is_told_alike_by_proc_and_by_psutil(monkeypatch):
    psutil = pytest.importorskip("psutil")
    told = system.memory_now(), system.memory_peak(), system.memory_free()
    monkeypatch.setattr(system, "_STATM", Path("/nowhere"))
    monkeypatch.setattr(system, "_MEMINFO", Path("/nowhere"))
    assert abs(system.memory_now() - told[0]) < 2**24
    assert abs(system.memory_free() - told[2]) < 2**31
    monkeypatch.setattr(system, "resource", None)
    assert psutil.Process().memory_info().rss <= system.memory_peak() + 2**24


def test_a_living_process_is_told_from_a_dead_one_on_every_system(monkeypatch):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    for windows in (False, True):
        monkeypatch.setattr(system, "WINDOWS", windows)
        assert system.alive(child.pid) and system.alive(os.getpid())
    child.communicate(b"\n")
    for windows in (False, True):
        monkeypatch.setattr(system, "WINDOWS", windows)
        assert not system.alive(child.pid)


def test_numbers_that_windows_gives_are_told_in_the_same_words(monkeypatch):
    from safetensors import SafetensorError

    full = SafetensorError("I/O error: There is not enough space on the disk. (os error 112)")
    from graft.storage.disk import number_of

    monkeypatch.setattr(system, "WINDOWS", True)
    assert number_of(full) == system.errno.ENOSPC
    assert number_of(SafetensorError("used by another process (os error 32)")) == system.errno.EBUSY


def test_room_is_reserved_without_posix_fallocate(monkeypatch, tmp_path):
    monkeypatch.delattr(os, "posix_fallocate")
    with (tmp_path / "pages").open("w+b") as file:
        system.reserve(file.fileno(), 2**20 + 5)
    assert (tmp_path / "pages").read_bytes() == bytes(2**20 + 5)


def test_where_folders_cannot_be_locked_only_dead_processes_left_something(monkeypatch, tmp_path):
    monkeypatch.setattr(system, "fcntl", None)
    mine, theirs = writes.beside(tmp_path / "out"), tmp_path / f".tmp-out-{2**22 + 1}-{'0' * 32}"
    for folder in (mine, theirs):
        folder.mkdir()
    writes.sweep_beside(tmp_path / "out")
    assert mine.exists() and not theirs.exists()
    with writes.new_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("b")
    assert (tmp_path / "out/a").read_text() == "b"


def test_the_holder_of_a_lock_is_named_where_a_locked_file_cannot_be_read(monkeypatch, tmp_path):
    monkeypatch.setattr(lock, "WINDOWS", True)
    with lock.locked(tmp_path / "run"):
        assert (tmp_path / "run/.lock").read_bytes() == b""
        told = pytest.raises(CheckpointError, match=f"is in use by process {os.getpid()}")
        with told, lock.locked(tmp_path / "run"):
            pass
    assert not (tmp_path / "run").exists()


def test_templates_are_written_without_limits_of_the_system(monkeypatch):
    monkeypatch.setattr("graft.data.sandbox.resource", None)
    monkeypatch.delattr(signal, "setitimer")
    sandbox = Sandbox()
    sandbox.begin(100, 1)
    assert sandbox.write("{{ messages[0]['content'] }}", [{"content": "hello"}], {}) == "hello"
    with pytest.raises(TooMuch, match="characters"):
        sandbox.write("{% for i in range(9**5) %}{{ 'long' * 99 }}{% endfor %}", [], {})
    with pytest.raises(BadRow):
        sandbox.write("{{ nothing.at.all }}", [], {})


def test_a_template_without_an_end_is_ended_by_the_clock_where_the_system_does_not(monkeypatch):
    bare = "import signal; del signal.setitimer; " + rendering.PROGRAM
    monkeypatch.setattr(rendering, "PROGRAM", bare)
    monkeypatch.setattr(rendering, "WAIT_S", 60.0)
    asked = rendering.Renderer()
    facts = '{"text": "%s", "variables": {}, "controls": [], "eos": ["</s>", 1]}'
    rows = [{"messages": [{"role": "user", "content": "Hello"}], "tools": None, "ask": False}]
    assert "Hello" in str(asked.answers(facts % "{{ messages[0].content }}", "render", rows))
    monkeypatch.setattr(rendering, "WAIT_S", 0.5)
    with pytest.raises(DataError, match="chat template"):
        asked.answers(facts % "{{ 9 ** (9 ** 9) }}", "render", rows)
    asked.close()
