"""Questions that graft answers in a process of its own."""

import sys

import pytest

from graft.serve.failures import ApiError
from graft.serve.studio import commands

ERROR = "noise\ngraft: error: no rows in x.jsonl\n  expected: rows\n  to do:    write some\n"


def asked(monkeypatch, code):
    monkeypatch.setattr(commands, "PROGRAM", (sys.executable, "-c", code))
    return commands._run(["data", "show"])


def test_an_answer_is_what_is_printed(monkeypatch):
    assert asked(monkeypatch, "import sys; print({}, file=sys.stderr); print('{\"a\": 1}')") == {"a": 1}


def test_an_error_is_told_in_its_three_parts(monkeypatch):
    with pytest.raises(ApiError) as told:
        asked(monkeypatch, f"import sys; sys.stderr.write({ERROR!r}); sys.exit(2)")
    assert told.value.status == 400
    assert told.value.message == "no rows in x.jsonl.\nExpected: rows.\nTo do: write some"


@pytest.mark.parametrize("code", ["import os; os.abort()", "import sys; sys.exit(70)"])
def test_a_process_that_dies_is_no_fault_of_the_page(monkeypatch, code):
    with pytest.raises(ApiError, match="graft data ended with") as told:
        asked(monkeypatch, code)
    assert told.value.status == 503


def test_a_process_that_takes_too_long_is_ended(monkeypatch):
    monkeypatch.setattr(commands, "TIMEOUT_S", 0.2)
    with pytest.raises(ApiError, match="did not answer") as told:
        asked(monkeypatch, "while True: pass")
    assert told.value.status == 503
