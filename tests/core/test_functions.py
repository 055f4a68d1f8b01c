"""Functions that the user names: found in modules and files, and what is wrong with a name is said."""

import sys

import pytest

from graft.core.functions import fingerprint, imported
from graft.errors import UsageError

pytestmark = pytest.mark.quick


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with a file of functions."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "scores.py").write_text(
        "from dataclasses import dataclass\n"
        "@dataclass\n"
        "class Kept:\n    count: int = 0\n"
        "kept = Kept()\n"
        "number = 3\n"
        "def grow():\n    kept.count += 1\n    return kept.count\n"
    )
    return tmp_path


def test_a_function_is_found_in_a_module_and_in_a_file(folder):
    assert imported("math:fsum", "metric")([1, 2]) == 3
    assert imported("mine/scores.py:grow", "reward")() == 1
    assert imported(f"{folder}/mine/scores.py:grow", "reward")() == 2  # read once: the count goes on
    assert "scores" not in sys.modules


def test_a_file_that_has_changed_is_read_again(folder):
    path = "mine/scores.py:grow"
    before, mark = imported(path, "reward"), fingerprint(path, "reward")
    (folder / "mine" / "scores.py").write_text("def grow():\n    return 'new'\n")
    assert imported(path, "reward")() == "new" and before() == 1
    assert fingerprint(path, "reward") != mark
    (folder / "mine" / "scores.py").write_text(
        "def grow():\n    return 'NEW'\n"
    )  # as long, in the same second
    assert imported(path, "reward")() == "NEW"
    assert fingerprint(path, "reward") == fingerprint(path, "reward")


def test_a_fingerprint_follows_the_file_where_a_function_is_written(folder, monkeypatch):
    monkeypatch.syspath_prepend(folder)
    (folder / "written_there.py").write_text("def f():\n    return 1\n")
    (folder / "named_here.py").write_text(
        "from written_there import f\nclass C:\n    def __call__(self):\n        return 2\nc = C()\n"
    )
    marks = [fingerprint(f"named_here:{name}", "reward") for name in "fc"]
    (folder / "written_there.py").write_text("def f():\n    return 0\n")
    after = [fingerprint(f"named_here:{name}", "reward") for name in "fc"]
    assert after[0] != marks[0] and after[1] == marks[1]
    assert fingerprint("math:fsum", "reward") != fingerprint("math:prod", "reward")


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("mine/scores.py:gros", "there is no 'gros' in it.*did you mean grow"),
        ("mine/scors.py:grow", "there is no file mine/scors.py.*did you mean scores.py"),
        ("nowhere/at_all.py:grow", "there is no file.*check the path"),
        ("mine/scores.py:number", "is a int.*name a function"),
        ("no_such_package.module:f", "ModuleNotFoundError: No module named 'no_such_package'.*spelling"),
        ("math", "with a colon between"),
        ("mine/scores.py:", "with a colon between"),
        ("broken.py:f", r"ZeroDivisionError at .*broken.py:3: division by zero.*correct the file"),
        ("unwritten.py:f", r"SyntaxError at .*unwritten.py:1"),
        ("leaves.py:f", r"SystemExit at .*leaves.py:1: 3"),
        ("calls.py:f", r"JSONDecodeError at .*calls.py:2: Expecting"),
        ("lacks.py:f", r"ModuleNotFoundError at .*lacks.py:1: No module named 'no_such_thing'"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_name_is_said(folder, path, said):
    (folder / "broken.py").write_text("def f():\n    pass\n1 / 0\n")
    (folder / "unwritten.py").write_text("def f(:\n")
    (folder / "leaves.py").write_text("raise SystemExit(3)\n")
    (folder / "calls.py").write_text("import json\njson.loads('?')\n")
    (folder / "lacks.py").write_text("import no_such_thing\n")
    with pytest.raises(UsageError, match=f"reward '{path}' .*{said}"):
        imported(path, "reward")
