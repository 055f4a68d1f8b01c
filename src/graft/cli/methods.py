"""graft methods: list the methods and their presets, from the methods' own files."""

import sys
import textwrap
from pathlib import Path
from typing import Annotated, Any

import typer

from graft.cli.say import after, show, show_json, table
from graft.cli.wait import columns, is_terminal, waiting
from graft.core.cards import ABILITIES, REQUIRED, TITLES, Card, card, cards, pages
from graft.core.presets import PRESETS, presets_of, spelt
from graft.errors import one_of
from graft.storage import replace, require_file

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
WIDE = 100  # columns of a terminal from which on the places are shown whole
NARROW_PLACES = 18  # characters of them on a narrower one
SUBLAYERS = ("attention", "cross", "mlp")  # all three together are "sublayers"


def add_to(app: typer.Typer) -> None:
    app.command("methods", help="List the methods and presets, or show the card of one.")(methods)


def methods(
    name: Annotated[str | None, typer.Argument(help="A method or preset; by default all are listed.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Count the parameters that each trains on this base.")
    ] = None,
    write: Annotated[Path | None, typer.Option(help="Write a page about each into this folder.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the same facts for programs.")] = False,
) -> None:
    chosen = list(cards().values()) if name is None else _named(name)
    counts: dict[str, int | str] = {}
    if model is not None:
        with waiting(f"counting on {model}"):
            from graft.planning.plan import count_methods  # torch costs seconds

            counts = count_methods(model)
    if write is not None:
        require_file(write / "README.md")
        write.mkdir(parents=True, exist_ok=True)
        for file, text in pages().items():
            replace(write / file, text.encode())
        after(f"open {write / 'README.md'}")
    elif json:
        show_json([_facts(one) | ({"trained": counts[one.name]} if counts else {}) for one in chosen])
    elif name is None:
        show(_listed(chosen, counts))
        after(f"graft methods {chosen[0].name}")
    else:
        preset = PRESETS.get(spelt(name)) if name not in cards() else None
        if preset is not None:
            show(f"{spelt(name)} is {preset}\n")
        for one in chosen:
            _show_card(one)
        after(f"graft train --model MODEL --data ROWS.jsonl --method {name}")


def _named(name: str) -> list[Card]:
    """Return the card of a method, or those of the methods that a preset stands for.

    Raises UsageError with the nearest name.
    """
    known = cards()
    if name in known:
        return [known[name]]
    preset = PRESETS.get(one_of("method", spelt(name), [*known, *PRESETS]))
    return [card(one["name"]) for one in preset.methods] if preset else [card(spelt(name))]


def _listed(chosen: list[Card], counts: dict[str, int | str]) -> str:
    """Return a line for each method, and for each preset under its method; as wide as the terminal."""
    terminal = is_terminal(sys.stdout)  # a program or a file has room for it all
    room = NARROW_PLACES if terminal and columns() < WIDE else len("".join(PLACES.values()))
    rows = [
        [one.name, _cut(_places(one), room), *_trained(one, counts), _merges(one), one.title]
        for one in chosen
    ]
    head, *lines = table(
        ("method", "places", *(("trained",) if counts else ()), "merges", "what"), rows, gap=2
    ).splitlines()
    width = max(len(one.name) for one in chosen)
    shown = [head]
    for one, line in zip(chosen, lines, strict=True):
        shown.append(line)
        shown += [f"{'  ' + name:<{width}}  = {preset}" for name, preset in presets_of(one.name).items()]
    if terminal:
        shown = [_cut(line, columns()) for line in shown]
    return "\n".join(shown)


def _cut(line: str, width: int) -> str:
    """Return a line that fits, cut between two words.

    >>> _cut("a trained low-rank update", 20)
    'a trained low-rank …'
    """
    return line if len(line) <= width else f"{line[: width - 1].rpartition(' ')[0].rstrip(' ,;')} …"


def _show_card(one: Card) -> None:
    """Print a method's docstring, settings and abilities."""
    show(one.doc.strip() + "\n")
    for name, preset in presets_of(one.name).items():
        show(f"preset {name}: {preset}")
    if presets_of(one.name):
        show("")
    width = max((len(key) for key in one.settings), default=0)
    for setting in one.settings.values():
        default = "required" if setting.default is REQUIRED else repr(setting.default)
        head = f"  {setting.name:<{width}}  {default:<14} "
        wrapped = textwrap.fill(setting.help, 110, initial_indent=head, subsequent_indent=" " * len(head))
        show(wrapped if setting.help else head.rstrip())
    show("")
    for word in ABILITIES:
        declared = one.declared.get(word, True)
        show(f"{TITLES.get(word, word)}: {'yes' if declared is True else f'{declared.answer}: {declared}'}")


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
        "presets": {name: str(preset) for name, preset in presets_of(one.name).items()},
    }


def _places(one: Card) -> str:
    """Return where a method sits in the model, in words."""
    kinds = one.declared.get("kinds", ("linear",))
    if set(SUBLAYERS) <= set(kinds):
        kinds = ("sublayers", *(kind for kind in kinds if kind not in SUBLAYERS))
    words = [PLACES.get(kind, kind) for kind in kinds]
    return ", ".join(words)


def _merges(one: Card) -> str:
    """Return whether a method merges, in a word."""
    refusal = one.exceptions().get("mergeable")
    if refusal is None:
        return "yes"
    return "no" if refusal.answer == "no" else "partly"
