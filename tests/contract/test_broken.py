"""The laws can fail: each broken method breaks exactly its own."""

import pytest
from broken import BROKEN, Sound
from laws import LAWS

from graft.base.base import Base
from graft.core import registry
from graft.core.file_layout import FileLayout
from models import tiny_model


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """Adapter files name a method; let `find` know the ones of this test."""
    known, find = [c.__name__ for c in (*BROKEN, Sound)], registry.find
    classes = {c.__name__: c for c in (*BROKEN, Sound)}
    for module in (registry,):
        monkeypatch.setattr(
            module, "find", lambda name: classes.get(name) or (Sound if name == "broken" else find(name))
        )
        monkeypatch.setattr(module, "names", lambda: known)


def failures(method):
    broken = set()
    for name, law in LAWS.items():
        if name == "compiled_equals_eager":
            continue
        try:
            law(lambda: Base(tiny_model("llama")), method)
        except AssertionError:
            broken.add(name)
    return broken


def test_a_sound_method_breaks_no_law():
    assert failures(Sound()) == set()


@pytest.mark.parametrize("cls", BROKEN, ids=lambda c: c.__name__)
def test_each_defect_breaks_exactly_its_law(cls, monkeypatch):
    monkeypatch.setattr(cls, "files", FileLayout(cls.__name__.upper()))
    assert failures(cls()) == {BROKEN[cls]}
