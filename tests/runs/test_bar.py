"""What a run shows where Python is used: bars on a terminal, lines in a log, nothing where it is silenced."""

import io
import re
import sys

import pytest
from short_run import short_run, write_home

import graft
from graft.runs import surfaces
from graft.runs.bar import Bar
from graft.runs.surfaces import Log, Task, Terminal


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return write_home(tmp_path_factory.mktemp("bar"))


@pytest.fixture
def show(monkeypatch):
    """Return a function that begins to show what runs show, and returns the standard error that receives it.

    A test calls it: pytest puts its own standard error in place between a fixture and the test.
    """
    monkeypatch.setenv("GRAFT_PROGRESS", "on")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")

    def begin(*, terminal=False):
        screen = io.StringIO()
        screen.isatty = lambda: terminal
        monkeypatch.setattr(sys, "stderr", screen)
        return screen

    return begin


def plain(text):
    """Return a text without the marks that move a terminal's cursor and choose its colours."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_a_log_has_a_line_for_what_begins_and_for_every_step_that_counts(home, tmp_path, show):
    shown = show()
    graft.run(short_run(home, tmp_path / "run"))
    lines = shown.getvalue().splitlines()
    starts = [line.split("   ")[0].strip() for line in lines]
    order = [
        "planning",
        f"loading {home / 'model'}",
        "preparing rows",
        "adapter lora on 14 sites",
        "trained 4 steps",
    ]
    assert set(order) <= set(starts)
    places = [starts.index(word) for word in order]
    assert places == sorted(places)
    assert [line for line in lines if line.startswith("train ")][-1].split()[1] == "4/4"
    assert [line.split()[:2] for line in lines if line.startswith("eval ")] == [["eval", "2"], ["eval", "4"]]
    assert "\x1b" not in shown.getvalue()
    assert re.search(r"^scores  perplexity [\d.]+ -> [\d.]+$", shown.getvalue(), re.MULTILINE)


def test_training_an_adapter_shows_the_same(home, tmp_path, show):
    shown = show()
    base = graft.load(str(home / "model"), dtype="fp32")
    adapter = base.attach("a", graft.LoRA(r=2))
    data = {"train": str(home / "rows.jsonl"), "eval": 0.25, "max_length": 64}
    graft.train(base, adapter, data, output=tmp_path / "run", max_steps=2, batch_size=4)
    assert "trained 2 steps   loss" in shown.getvalue()


@pytest.mark.parametrize("way", ["argument", "variable"])
def test_a_silenced_run_shows_nothing(home, tmp_path, show, monkeypatch, way):
    shown = show()
    if way == "variable":
        monkeypatch.setenv("GRAFT_PROGRESS", "off")
    graft.run(short_run(home, tmp_path / "run"), progress=way == "variable")
    assert shown.getvalue() == ""


def test_a_terminal_has_bars_that_are_gone_in_the_end_and_lines_that_stay(home, tmp_path, show):
    terminal = show(terminal=True)
    graft.run(short_run(home, tmp_path / "run"))
    text = plain(terminal.getvalue())
    assert "━" in text and "4/4" in text and "scoring" in text and "eta" in text
    assert "trained 4 steps   loss" in text
    assert terminal.getvalue().count("\x1b[?25l") == terminal.getvalue().count("\x1b[?25h"), "cursor is back"


def test_the_bars_are_gone_after_an_error_too(home, tmp_path, show):
    terminal = show(terminal=True)

    class Broken:
        def step(self, record):
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        graft.run(short_run(home, tmp_path / "run"), observer=Broken())
    assert terminal.getvalue().count("\x1b[?25l") == terminal.getvalue().count("\x1b[?25h") > 0


def test_notices_stand_among_the_lines_unless_pythons_filters_say_otherwise(home, tmp_path, show, recwarn):
    shown = show()
    settings = short_run(home, tmp_path / "run")
    settings["train"]["samples"] = []
    settings["train"]["sample_tokens"] = 5
    graft.run(settings)
    assert "note    train.sample_tokens=5 has no effect here" in shown.getvalue()
    assert not [warning for warning in recwarn if issubclass(warning.category, graft.Notice)]
    with pytest.warns(graft.Notice):  # the filter stands for any that the caller has set
        graft.run(settings | {"output": str(tmp_path / "silent")}, progress=False)


@pytest.mark.filterwarnings("error::graft.errors.Notice")
def test_a_filter_that_makes_errors_of_notices_holds_beside_a_bar(home, tmp_path, show):
    show()
    settings = short_run(home, tmp_path / "run")
    settings["train"]["samples"] = []
    settings["train"]["sample_tokens"] = 5
    with pytest.raises(graft.Notice, match="sample_tokens"):
        graft.run(settings)


def test_a_log_gets_at_most_a_line_for_every_twentieth_part(capsys, monkeypatch):
    monkeypatch.setattr(surfaces, "APART_S", 0.0)
    log = Log()
    for step in range(1, 1001):
        log.show([Task("train", step, 1000, ["loss 1"])])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 21 and lines[-1] == "train     1,000/1,000   loss 1"


def test_a_log_is_not_flooded_by_tasks_that_alternate(capsys):
    log = Log()
    for step in range(1, 11):
        for task in ([Task("train", step, 1000)], [Task("train", step, 1000), Task("writing answers", 1, 8)]):
            log.show(task)
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_a_terminal_shows_tasks_together_and_takes_them_away_alone(show):
    terminal = show(terminal=True)
    surface = Terminal()
    surface.show([Task("train", 1, 2), Task("writing answers", 24, 64)])
    during = plain(terminal.getvalue())
    surface.show([Task("train", 1, 2)])
    after = plain(terminal.getvalue())[len(during) :]
    surface.close()
    assert "24/64" in during and "1/2" in during
    assert "writing" not in after and "1/2" in after


def test_a_stream_that_is_gone_stops_nothing(home, tmp_path, show):
    show()

    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    sys.stderr = Gone()
    assert graft.run(short_run(home, tmp_path / "run")).steps == 4


def test_only_a_notebooks_kernel_is_taken_for_a_notebook(monkeypatch):
    class ZMQInteractiveShell: ...

    class TerminalInteractiveShell: ...

    for shell, wanted in ((ZMQInteractiveShell(), True), (TerminalInteractiveShell(), False), (None, False)):
        module = type(sys)("IPython")
        module.get_ipython = lambda shell=shell: shell
        monkeypatch.setitem(sys.modules, "IPython", module)
        assert surfaces.in_notebook() is wanted


def test_a_bar_without_a_surface_hears_everything():
    bar = Bar()
    assert bar.surface is None
    bar.doing("loading", 0, 0)
    bar.told("a note")
    bar.close()
