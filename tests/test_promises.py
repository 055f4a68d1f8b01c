"""docs/promises.md names every complaint and every promise once, each with tests that exist or as open."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

pytestmark = pytest.mark.quick

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "promises.md").read_text(encoding="utf-8")
ITEMS = dict(re.findall(r"^- \*\*((?:R|S)?\d+)\.(.*?)(?=^- \*\*|^#|\Z)", TEXT, re.MULTILINE | re.DOTALL))
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)(?:\[([^\]]+)\])?`", TEXT)


@cache
def functions_of(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_complaint_and_every_promise_stands_there_once():
    wanted = [*map(str, range(1, 44)), *(f"R{n}" for n in range(1, 23)), *(f"S{n}" for n in range(1, 22))]
    assert re.findall(r"^- \*\*((?:R|S)?\d+)\.", TEXT, re.MULTILINE) == wanted


def test_each_has_a_test_or_is_said_to_be_open():
    bare = [name for name, text in ITEMS.items() if "::" not in text and "**Open:**" not in text]
    assert not bare


@pytest.mark.parametrize(("path", "name", "case"), NAMED)
def test_a_named_test_exists(path, name, case):
    assert (ROOT / path).exists() and name in functions_of(path)


def test_a_named_cell_has_cases_in_the_suite():
    from every import CELLS  # late: torch

    small = {name for name, cell in CELLS.items() if cell.counts["small"] != 0}
    assert {case for _, _, case in NAMED if case} <= small


def test_no_test_is_named_in_another_form():
    assert TEXT.count("`tests/") - TEXT.count("`tests/test_promises.py`") == len(NAMED)
