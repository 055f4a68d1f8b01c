"""The laws can fail: each broken method breaks exactly its own."""

import pytest
from bases import BASES
from broken import BROKEN, Sound
from laws import LAWS

from graft.core import registry
from graft.core.file_layout import FileLayout

pytestmark = pytest.mark.quick


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """Adapter files name a method; let the registry find the ones of this test, and no others in `names`."""
    classes = {cls.__name__: cls for cls in (*BROKEN, Sound)}
    find_installed = registry.find

    def find(name):
        return Sound if name == "broken" else classes.get(name) or find_installed(name)

    monkeypatch.setattr(registry, "find", find)
    monkeypatch.setattr(registry, "names", lambda: ["broken", *classes])


def broken_laws(method, laws):
    """Return the names of the laws that a method breaks on a plain base."""
    broken = set()
    for name in laws:
        try:
            LAWS[name](BASES["fp32"], method)
        except AssertionError:
            broken.add(name)
    return broken


def test_every_law_has_been_seen_to_fail():
    assert set(BROKEN.values()) == set(LAWS)


def test_a_sound_method_breaks_no_law():
    assert broken_laws(Sound(), LAWS) == set()


@pytest.mark.parametrize("cls", BROKEN, ids=lambda c: c.__name__)
def test_each_defect_breaks_exactly_its_law(cls, monkeypatch):
    monkeypatch.setattr(cls, "files", FileLayout(cls.__name__.upper()))
    traced = BROKEN[cls] == "compiled_equals_eager"  # tracing costs a second: only where it is the point
    laws = [name for name in LAWS if traced or name != "compiled_equals_eager"]
    assert broken_laws(cls(), laws) == {BROKEN[cls]}
