"""graft methods: what can be trained, from the methods' own files."""

import textwrap
from typing import Annotated, Any

import typer

from graft.cards import REQUIRED, Card, card, cards
from graft.cli.say import after, show, show_json, table


def add_to(app: typer.Typer) -> None:
    app.command("methods", help="List the methods, or show the card of one.")(methods)


def methods(
    name: Annotated[str | None, typer.Argument(help="A method; without it all are listed.")] = None,
    json: Annotated[bool, typer.Option("--json", help="A list of {name, ...} for programs.")] = False,
) -> None:
    chosen = list(cards().values()) if name is None else [card(name)]
    if json:
        show_json([_facts(one) for one in chosen])
    elif name is None:
        rows = [(one.name, _sites(one), _can(one, "mergeable"), one.paper, one.title) for one in chosen]
        show(table(("method", "sites", "merges", "paper", "what"), rows))
        after(f"graft methods {chosen[0].name}")
    else:
        _show_card(chosen[0])
        after(f"graft train --model MODEL --data ROWS.jsonl --method {name}")


def _show_card(one: Card) -> None:
    show(one.doc.strip() + "\n")
    width = max((len(key) for key in one.settings), default=0)
    for setting in one.settings.values():
        default = "required" if setting.default is REQUIRED else repr(setting.default)
        head = f"  {setting.name:<{width}}  {default:<14} "
        show(
            textwrap.fill(setting.help, 118, initial_indent=head, subsequent_indent=" " * len(head))
            if setting.help
            else head.rstrip()
        )
    for word in ("mergeable", "quantisable", "routable"):
        declared = one.declared.get(word, True)
        show(
            f"\n{word}: {'yes' if declared is True else f'no: {declared}'}"
            if word == "mergeable"
            else f"{word}: {'yes' if declared is True else f'no: {declared}'}"
        )


def _facts(one: Card) -> dict[str, Any]:
    settings = [
        {"name": s.name, "type": s.type, "default": None if s.default is REQUIRED else s.default, "help": s.help}
        for s in one.settings.values()
    ]
    declared = {word: one.declared.get(word, True) is True for word in ("mergeable", "quantisable", "routable")}
    return {
        "name": one.name,
        "class": one.cls,
        "title": one.title,
        "paper": one.paper,
        **declared,
        "settings": settings,
    }


def _sites(one: Card) -> str:
    kinds = one.declared.get("kinds", ("linear",))
    return " ".join(kinds) if isinstance(kinds, tuple | list) else str(kinds)


def _can(one: Card, word: str) -> str:
    return "yes" if one.declared.get(word, True) is True else "no"
