"""What is shown while a command works: at once, moving on a terminal, plain elsewhere, and gone after it."""

import io
import os
import subprocess
import sys
import threading
import time

import pytest

from graft.cli import VERBS, wait
from graft.cli.say import paint, show, talk


class Screen(io.StringIO):
    """A stream that is a terminal, or is none."""

    def __init__(self, terminal):
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal


@pytest.fixture
def screen(monkeypatch):
    def make(*, terminal):
        stream = Screen(terminal)
        monkeypatch.setattr("sys.stderr", stream)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.delenv("NO_COLOR", raising=False)
        return stream

    yield make
    wait.over()


def visible(text):
    """Return the lines that a terminal shows in the end of what was written to it."""
    lines = []
    for line in text.split("\n"):
        lines.append(line.rpartition(wait.CLEAR)[2])
    return [line for line in lines if line]


def test_a_pipe_gets_one_plain_line_at_once(screen):
    stream = screen(terminal=False)
    with wait.waiting("loading seedling"):
        assert stream.getvalue() == "loading seedling ...\n"
        talk("note    something")
    assert stream.getvalue() == "loading seedling ...\nnote    something\n"


def test_a_terminal_shows_a_line_that_moves_and_goes(screen):
    stream = screen(terminal=True)
    with wait.waiting("loading seedling") as tell:
        tell(12, 60)
        deadline = time.monotonic() + 60
        while "/ loading seedling 12 of 60 ..." not in stream.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
        talk("note    something")
    shown = stream.getvalue()
    assert "| loading seedling ..." in shown and "/ loading seedling 12 of 60 ..." in shown
    assert visible(shown) == ["note    something"]


def test_what_takes_long_is_said_again_with_its_count(screen, monkeypatch):
    monkeypatch.setattr(wait, "FIRST_S", 0.0)
    stream = screen(terminal=False)
    with wait.waiting("scoring") as tell:
        tell(20, 1200)
        deadline = time.monotonic() + 60
        while "scoring 20 of 1,200 ...\n" not in stream.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
    assert "scoring 20 of 1,200 ...\n" in stream.getvalue()


def test_a_waiting_without_a_block_ends_with_the_answer(screen, capsys):
    stream = screen(terminal=True)
    wait.begin("loading seedling")
    talk("note    something")
    assert wait._shown.texts == ["loading seedling"], "a note does not end it"
    wait.begin("writing out")
    assert wait._shown.texts == ["writing out"]
    show("wrote   out")
    assert not wait._shown.texts and visible(stream.getvalue()) == ["note    something"]


def test_one_that_is_brief_ends_with_any_line(screen):
    screen(terminal=True)
    wait.begin("loading seedling", briefly=True)
    talk("base    seedling")
    assert not wait._shown.texts


def test_no_thread_is_left(screen):
    screen(terminal=True)
    for _ in range(3):
        with wait.waiting("a"), wait.waiting("b"):
            pass
    wait.begin("c")
    wait.over()
    deadline = time.monotonic() + 60
    while any(t.name == "graft-wait" for t in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not [t for t in threading.enumerate() if t.name == "graft-wait"]


def test_a_closed_or_missing_stream_stops_nothing(monkeypatch):
    stream = io.StringIO()
    stream.close()
    for broken in (stream, None):
        monkeypatch.setattr("sys.stderr", broken)
        with wait.waiting("loading"):
            pass


def test_colours_are_for_terminals_and_obey_no_color(screen, monkeypatch):
    screen(terminal=True)
    assert paint("x", "31") == "\033[31mx\033[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert paint("x", "31") == "x"
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert paint("x", "31") == "x"
    screen(terminal=False)
    assert paint("x", "31") == "x"


SLOW = {
    "plan": "plan --model seedling",
    "train": "train --model seedling --data seedling:descriptions --output {tmp}/run",
    "eval": "eval seedling --data seedling:descriptions-held-out",
    "chat": "chat seedling --prompt x",
    "compare": "compare seedling seedling --prompt x",
    "judge": "judge a.jsonl b.jsonl --by rule:shorter --out {tmp}/j.jsonl",
    "rank": "rank j.jsonl",
    "merge": "merge seedling {tmp}/merged",
    "export": "export seedling {tmp}/out",
    "verify": "verify {seedling}",
    "quantize": "quantize seedling {tmp}/packed",
    "convert": "convert seedling {tmp}/x --base seedling",
    "methods --model": "methods --model seedling",
    "data": "data show seedling:descriptions",
    "doctor": "doctor",
    "demo": "demo --folder {tmp}/demo",
    "ask": "ask {rows} --adapters {tmp}",
    "sweep": "sweep --model seedling --data seedling:descriptions --method lora,ia3 --out {tmp}/sweep",
    "serve": "serve seedling --port 0",
    "studio": "studio seedling --port 0 --runs {tmp}/runs",
    "eval --tasks": "eval seedling --tasks arc_easy",
}
BLOCKED = """
import os, sys

class Block:  # whatever is slow to import ends the command
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "numpy"):
            raise KeyboardInterrupt

sys.meta_path.insert(0, Block())
from graft.cli import call
for words in {words!r}:
    print("#", file=sys.stderr)
    assert call(words) == 130, words
"""


def test_every_verb_says_what_it_does_before_it_imports_torch(tmp_path):
    from graft.seedling import FOLDER

    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "Hello"}\n')
    words = [line.format(tmp=tmp_path, rows=rows, seedling=FOLDER).split() for line in SLOW.values()]
    code = BLOCKED.replace("{words!r}", repr(words))
    settings = {**os.environ, "GRAFT_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=settings, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    said = done.stderr.split("#\n")[1:]
    assert len(said) == len(SLOW)
    silent = [verb for verb, text in zip(SLOW, said, strict=True) if not text.strip()]
    assert not silent, "nothing was said before torch was imported"


def test_every_verb_is_among_the_slow_ones():
    slow = {verb.split()[0] for verb in SLOW}
    assert {verb.__name__.rpartition(".")[2] for verb in VERBS} == slow | {
        "runs"
    }  # which never imports torch


def test_a_labelled_line_breaks_between_words_on_a_terminal(screen, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    stream = screen(terminal=True)
    talk("plan    fits: needs 0.51 GiB of the 22.58 GiB that are available")
    talk("next    graft train --model seedling --data seedling:descriptions")  # to be copied whole
    talk("row     /tmp/a/folder/with/a/very/long/name/rows.jsonl:1958 is longer")
    assert stream.getvalue().splitlines() == [
        "plan    fits: needs 0.51 GiB of the",
        "        22.58 GiB that are available",
        "next    graft train --model seedling --data seedling:descriptions",
        "row     /tmp/a/folder/with/a/very/long/name/rows.jsonl:1958",
        "        is longer",
    ]
    plain = screen(terminal=False)
    talk("plan    fits: needs 0.51 GiB of the 22.58 GiB that are available")
    assert plain.getvalue().count("\n") == 1
