"""graft methods: list the methods, from their own files."""

import textwrap
from pathlib import Path
from typing import Annotated, Any

import typer

from graft.cli.say import after, show, show_json, table
from graft.core.cards import ABILITIES, REQUIRED, Card, card, cards, pages
from graft.storage import replace, require_run_folder

# The kinds of graft.core.site, in words.
PLACES = {
    "linear": "linears",
    "norm": "norms",
    "embed": "embeddings",
    "head": "head",
    "block": "blocks",
    "stack": "stack of blocks",
    "attention": "attention",
    "cross": "cross-attention",
    "mlp": "feed-forward",
    "kv": "keys and values",
    "prompt": "prompt",
    "final": "last state",
    "module": "own weights",
}
SUBLAYERS = ("attention", "cross", "mlp")  # all three together are "sublayers"


def add_to(app: typer.Typer) -> None:
    app.command("methods", help="List the methods, or show the card of one.")(methods)


def methods(
    name: Annotated[str | None, typer.Argument(help="A method; by default all are listed.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Count the parameters that each trains on this base.")
    ] = None,
    write: Annotated[Path | None, typer.Option(help="Write a page about each into this folder.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the same facts for programs.")] = False,
) -> None:
    chosen = list(cards().values()) if name is None else [card(name)]
    counts: dict[str, int | str] = {}
    if model is not None:
        from graft.planning.plan import count_methods  # torch costs seconds

        counts = count_methods(model)
    if write is not None:
        require_run_folder(write)
        write.mkdir(parents=True, exist_ok=True)
        for file, text in pages().items():
            replace(write / file, text.encode())
        after(f"open {write / 'README.md'}")
    elif json:
        show_json([_facts(one) | ({"trained": counts[one.name]} if counts else {}) for one in chosen])
    elif name is None:
        rows = [
            (one.name, _places(one), *_trained(one, counts), _merges(one), one.paper, one.title)
            for one in chosen
        ]
        show(table(("method", "places", *(("trained",) if counts else ()), "merges", "paper", "what"), rows))
        after(f"graft methods {chosen[0].name}")
    else:
        _show_card(chosen[0])
        after(f"graft train --model MODEL --data ROWS.jsonl --method {name}")


def _show_card(one: Card) -> None:
    """Print a method's docstring, settings and abilities."""
    show(one.doc.strip() + "\n")
    width = max((len(key) for key in one.settings), default=0)
    for setting in one.settings.values():
        default = "required" if setting.default is REQUIRED else repr(setting.default)
        head = f"  {setting.name:<{width}}  {default:<14} "
        wrapped = textwrap.fill(setting.help, 110, initial_indent=head, subsequent_indent=" " * len(head))
        show(wrapped if setting.help else head.rstrip())
    show("")
    for word in ABILITIES:
        declared = one.declared.get(word, True)
        show(f"{word}: {'yes' if declared is True else f'{declared.answer}: {declared}'}")


def _trained(one: Card, counts: dict[str, int | str]) -> tuple[str, ...]:
    """Return the cell with the count of a method, "-" if it cannot be attached; no cell without counts."""
    if not counts:
        return ()
    count = counts.get(one.name)
    return (f"{count:,}" if isinstance(count, int) else "-",)


def _facts(one: Card) -> dict[str, Any]:
    """Return a card as JSON values."""
    settings = [
        {
            "name": s.name,
            "type": s.words,
            "default": None if s.default is REQUIRED else s.default,
            "help": s.help,
        }
        for s in one.settings.values()
    ]
    declared = {word: one.declared.get(word, True) is True for word in ABILITIES}
    return {
        "name": one.name,
        "class": one.cls,
        "title": one.title,
        "paper": one.paper,
        **declared,
        "settings": settings,
    }


def _places(one: Card) -> str:
    """Return where a method sits in the model, in words."""
    kinds = one.declared.get("kinds", ("linear",))
    if set(SUBLAYERS) <= set(kinds):
        kinds = ("sublayers", *(kind for kind in kinds if kind not in SUBLAYERS))
    return ", ".join(PLACES.get(kind, kind) for kind in kinds)


def _merges(one: Card) -> str:
    """Return whether a method merges, in a word."""
    refusal = one.exceptions().get("mergeable")
    return "yes" if refusal is None else refusal.answer
