"""Signals raise Stop where they arrive, wait for the end of a change, and leave no handler behind."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from graft.errors import GraftError
from graft.storage import disk
from graft.storage.signals import Interrupted, check, held, obeyed, stopped

pytestmark = pytest.mark.quick
KILL = {signal.SIGTERM: 143, signal.SIGINT: 130}


@pytest.fixture(autouse=True)
def usual_handlers():
    """Give SIGINT Python's own handler, also where the tests run in a background that ignores it."""
    before = {number: signal.getsignal(number) for number in KILL}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number=signal.SIGTERM):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", KILL)
def test_a_signal_ends_the_block_at_once_and_passes_whoever_catches_exceptions(number):
    seen = []
    with pytest.raises(Interrupted) as caught, obeyed():
        try:
            seen.append("before")
            send(number)
            seen.append("after")
        except Exception:
            seen.append("kept")
        finally:
            seen.append("cleaned up")
    assert seen == ["before", "cleaned up"] and isinstance(caught.value, GraftError)
    assert caught.value.exit_code == KILL[number] and number.name in caught.value.given


def test_a_change_of_several_parts_is_ended_before_the_signal_is_obeyed():
    seen = []
    with pytest.raises(Interrupted), obeyed():
        with held():
            with held():
                send()
                seen.append("inner")
            seen.append("outer")
        seen.append("after")
    assert seen == ["inner", "outer"]


def test_an_error_in_a_change_is_not_hidden_by_the_signal():
    with pytest.raises(ZeroDivisionError), obeyed(), held():
        send()
        1 / 0  # noqa: B018


def test_a_stop_that_other_code_has_swallowed_comes_again():
    seen = []
    with pytest.raises(Interrupted), obeyed():
        try:
            send()
        except BaseException:
            seen.append("swallowed")
        check()
        seen.append("after")
    with pytest.raises(Interrupted), obeyed():
        try:
            send()
        except BaseException:
            seen.append("swallowed")
    assert seen == ["swallowed", "swallowed"]


def test_handlers_of_before_are_set_again_and_later_blocks_begin_anew():
    calls = []
    signal.signal(signal.SIGTERM, lambda number, frame: calls.append(number))
    with pytest.raises(Interrupted), obeyed(), obeyed():
        send()
    send()
    assert calls == [signal.SIGTERM]
    with obeyed():
        check()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_signal_that_the_process_was_started_to_ignore_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with obeyed():
        send(signal.SIGINT)
    with pytest.raises(Interrupted), obeyed():
        send()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_the_innermost_word_for_what_is_saved_counts():
    with (
        pytest.raises(Interrupted) as caught,
        obeyed(),
        stopped("outer"),
        stopped("step 3 is saved", "go on"),
    ):
        send()
    assert caught.value.given == "stopped by SIGTERM; step 3 is saved" and caught.value.remedy == "go on"


def test_another_thread_sets_no_handlers():
    def work():
        with obeyed(), held():
            check()
        done.append(signal.getsignal(signal.SIGTERM))

    done = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [signal.SIG_DFL]


def test_waiting_for_a_full_disk_ends_with_a_signal(monkeypatch, tmp_path):
    monkeypatch.setattr(disk, "PAUSES_S", (600.0,))
    threading.Timer(0.2, send).start()

    def full():
        raise OSError(28, "No space left on device")

    with pytest.raises(disk.SpaceError), obeyed(), held():
        disk.retry_while_full(tmp_path, 1, full, lambda text: None)


def child(body):
    """Return the exit code and output of a program whose body is `body`."""
    names = "from graft.storage.signals import Interrupted, held, obeyed, stopping"
    program = f"import os, signal, sys, time\n{names}\n{body}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout


def test_a_second_signal_ends_the_process_at_once():
    code, out = child(
        "import threading\n"
        "kill = lambda: os.kill(os.getpid(), signal.SIGTERM)\n"
        "threading.Timer(0.3, kill).start(); threading.Timer(1.0, kill).start()\n"
        "with obeyed(), held():\n"
        "    end = time.monotonic() + 600\n"
        "    while time.monotonic() < end: time.sleep(0.05)\n"
        "print('not reached')\n"
    )
    assert code == -signal.SIGTERM and out == ""


def test_one_request_that_comes_twice_is_no_second_signal():
    # As `timeout` does, which signals its child and then the group that the child is in.
    code, out = child(
        "pid = os.getpid()\n"
        "if os.fork() == 0:\n"
        "    time.sleep(0.3); os.kill(pid, 15); time.sleep(0.002); os.kill(pid, 15); os._exit(0)\n"
        "try:\n"
        "    with obeyed(): time.sleep(600)\n"
        "except Interrupted as stop: print(stop.exit_code)\n"
    )
    assert (code, out) == (0, "143\n")


def test_a_forked_child_dies_of_its_signal_as_any_process():
    code, out = child(
        "with obeyed():\n"
        "    ready, lives = os.pipe()\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        os.write(lives, b'!'); time.sleep(600); os._exit(0)\n"
        "    os.read(ready, 1); os.kill(pid, signal.SIGTERM)\n"
        "    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), stopping())\n"
    )
    assert (code, out) == (0, "-15 False\n")
