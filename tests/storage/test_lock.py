"""One process, and one thread of it, works in a folder; whoever comes second learns who that is."""

import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from graft.errors import CheckpointError, UsageError
from graft.storage import locked, output_folder, output_locked

pytestmark = pytest.mark.quick


def holder(folder, code="time.sleep(600)"):
    """Start a process that holds a run's folder; return it when it does."""
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom graft.storage import locked\n"
        f"with locked(Path(sys.argv[1])): print('held', flush=True); {code}"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_two_threads_exclude_each_other_as_two_processes_do(tmp_path):
    errors = []

    def second():
        try:
            with locked(tmp_path):
                pass
        except CheckpointError as error:
            errors.append(str(error))

    with locked(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert len(errors) == 1 and f"process {os.getpid()} on" in errors[0]


def test_a_second_call_in_the_same_thread_is_refused_unless_the_lock_is_handed_on(tmp_path):
    with locked(tmp_path) as lock:
        with locked(tmp_path, lock) as same:
            assert same is lock
        with pytest.raises(CheckpointError), locked(tmp_path):
            pass
    with locked(tmp_path):
        pass


def test_the_lock_of_a_killed_process_does_not_block(tmp_path):
    process = holder(tmp_path)
    with pytest.raises(CheckpointError, match=f"process {process.pid} on .*, started 2"), locked(tmp_path):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    with locked(tmp_path):
        pass


def test_a_child_that_outlives_its_killed_parent_does_not_hold_the_folder(tmp_path):
    process = holder(tmp_path, "import os; os.fork() or print(os.getpid(), flush=True); time.sleep(600)")
    child = int(process.stdout.readline())
    process.kill()
    process.wait()
    try:
        with locked(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_dead_process_is_not_named_as_the_holder(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    with locked(tmp_path):
        host = json.loads((tmp_path / ".lock").read_text())["host"]
        stale = {"pid": dead.pid, "host": host, "started": "2020-01-01 00:00:00"}
        (tmp_path / ".lock").write_text(json.dumps(stale))
        with pytest.raises(CheckpointError, match="in use by another process"), locked(tmp_path):
            pass


def test_a_folder_in_which_nothing_was_written_is_not_left_behind(tmp_path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "runs" / "new"):
        1 / 0  # noqa: B018
    assert not (tmp_path / "runs" / "new").exists()
    (tmp_path / "mine").mkdir()
    with locked(tmp_path / "mine"):
        pass
    assert (tmp_path / "mine").is_dir()


def test_an_output_has_one_writer_and_no_lock_stays_beside_it(tmp_path):
    out = tmp_path / "out"
    with output_folder(out, force=True) as folder:
        (folder / "file").write_text("first")
        busy = pytest.raises(UsageError, match=f"being written by process {os.getpid()}")
        with busy, output_folder(out, force=True):
            pass
    assert (out / "file").read_text() == "first" and list(tmp_path.iterdir()) == [out]
    with pytest.raises(ZeroDivisionError), output_locked(out):
        1 / 0  # noqa: B018
    assert list(tmp_path.iterdir()) == [out]


def test_what_another_process_has_written_in_between_is_not_replaced(tmp_path, monkeypatch):
    from graft.storage import outputs

    out, refuse, calls = tmp_path / "out", outputs.refuse_occupied, []

    def first_look(path, *, force):
        refuse(path, force=force)
        if not calls:  # after the first look, and before the lock
            out.mkdir()
            (out / "file").write_text("theirs")
        calls.append(path)

    monkeypatch.setattr(outputs, "refuse_occupied", first_look)
    with pytest.raises(UsageError, match="exists"), output_folder(out, force=False):
        pass
    assert (out / "file").read_text() == "theirs"
