"""The docstring of a method's class is its card."""

import inspect
import pydoc

import pytest

import graft
from graft.core.cards import cards
from graft.core.registry import find


@pytest.mark.parametrize("name", sorted(cards()))
def test_the_docstring_has_the_equation_and_every_setting_with_its_help(name):
    text, card = inspect.getdoc(find(name)), cards()[name]
    assert text.startswith(card.doc.strip())
    for setting in card.settings.values():
        assert f"    {setting.name}: " in text and f"        {setting.help}" in text
    for reason in card.exceptions().values():
        assert str(reason) in text


def test_help_shows_it():
    shown = pydoc.plain(pydoc.render_doc(graft.LoRA))
    assert "h = W₀x" in shown or "y = W₀x + b + s·B A drop(x)" in shown
    assert "    r: int from 1 to 4096 = 8\n" in shown and "rank of the update" in shown
    assert "not quantisable" not in shown


def test_a_class_with_a_docstring_of_its_own_keeps_it():
    class Mine(graft.LoRA):
        """Mine."""

    assert inspect.getdoc(Mine) == "Mine." and "Settings, given by name" in inspect.getdoc(graft.LoRA)
