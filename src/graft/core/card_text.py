"""The docstring of a method's class: its card as plain text, which `help(graft.LoRA)` shows."""

from typing import Any

from graft.core.cards import REQUIRED, Card, cards


def card_text(card: Card) -> str:
    """Return what a method's file says: the equation and its paper, every setting, what it cannot do."""
    lines = [card.doc.strip(), "", "Settings, given by name:", ""]
    for setting in card.settings.values():
        usual = "" if setting.default is REQUIRED else f" = {setting.default!r}"
        lines += [f"    {setting.name}: {setting.words}{usual}", f"        {setting.help}"]
    refused = [
        f"    {ability} only {refusal.answer}: {refusal}"
        if refusal.unless
        else f"    not {ability}: {refusal}"
        for ability, refusal in card.exceptions().items()
    ]
    return "\n".join([*lines, "", "What it cannot do:", "", *refused] if refused else lines)


class CardDoc:
    """Reads as the card's text of the class that it is the docstring of. It is made when it is first read."""

    def __init__(self, name: str) -> None:
        self._name, self._text = name, ""

    def __get__(self, method: Any, cls: type) -> str:
        if "__match_args__" not in vars(cls):  # dataclass, which makes it now, only asks whether there is one
            return self._name
        if not self._text:
            card = cards().get(self._name)
            known = card is not None and card.cls == cls.__name__
            self._text = card_text(card) if card is not None and known else cls.__name__
        return self._text
