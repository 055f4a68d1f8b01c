"""Cards and the registry read the same class of a file; a card is right about a method's abilities."""

import sys

import pytest

import graft
import graft.methods
from graft.cli import call
from graft.core.cards import card, cards, pages
from graft.core.registry import find, names
from graft.errors import UsageError
from graft.methods.adamix import AdaMix

HEADER = '''"""Doubt: nothing."""
from dataclasses import dataclass
from typing import ClassVar

from graft.core.file_layout import FileLayout
from graft.core.method import Method, No


'''
PARENT = """@dataclass(frozen=True)
class Shared(Method):
    strength: float = 1.0  # of both


"""
CHILD = """@dataclass(frozen=True)
class Doubt(Shared):
    extra: int = 2  # of one
    files: ClassVar = FileLayout("DOUBT")
"""


@pytest.fixture
def written(tmp_path):
    def write(text):
        (tmp_path / "methods" / "doubt.py").write_text(text)

    (tmp_path / "methods").mkdir()
    graft.__path__.append(str(tmp_path))
    yield write
    graft.__path__.pop()
    sys.modules.pop("graft.methods.doubt", None)
    vars(graft.methods).pop("doubt", None)


def test_a_file_stands_for_the_class_that_no_other_of_its_classes_derives_from(written):
    written(HEADER + PARENT + CHILD)
    assert find("doubt").__name__ == card("doubt").cls == "Doubt"
    assert {"strength", "extra"} <= card("doubt").settings.keys()


def test_a_file_with_two_methods_is_refused_by_both(written):
    written(HEADER + PARENT + CHILD + "\n\nclass Other(Shared):\n    pass\n")
    for read in (find, card):
        with pytest.raises(UsageError, match="holds the methods Doubt, Other"):
            read("doubt")


def test_cards_and_the_registry_agree_on_every_method():
    assert {name: one.cls for name, one in cards().items()} == {name: find(name).__name__ for name in names()}


def test_an_ability_that_depends_on_a_setting_is_shown_with_it(capsys):
    assert AdaMix(host="lora").mergeable is True and not AdaMix().mergeable and not AdaMix.mergeable
    assert "| with host=lora [" in pages()["README.md"]
    assert "- mergeable only with host=lora: a non-linearity" in pages()["adamix.md"]
    assert call(["methods", "adamix"]) == 0
    assert "mergeable: with host=lora: a non-linearity" in capsys.readouterr().out
