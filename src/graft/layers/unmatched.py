"""Say which entries of a setting match nothing in a model, so that no entry is passed over in silence.

A list of which nothing matches is an error, where it is read; here some entries match and others do not. A
regular expression is one entry.
"""

from collections.abc import Callable, Iterable, Sequence

from graft.errors import listed, notice

Entries = str | Sequence[str]  # names or last parts of names, or one regular expression


def say_unmatched(
    setting: str, entries: Entries, names: Iterable[str], match: Callable[[str, Entries], bool], of: str
) -> None:
    """Give a notice that names the entries that match none of `names`.

    match: whether a name matches a list of entries, or an expression.  of: what has these names.
    """
    known = list(names)
    parts: list[Entries] = [entries] if isinstance(entries, str) else [[entry] for entry in entries]
    idle = [part if isinstance(part, str) else part[0] for part in parts if not _any(known, part, match)]
    say_idle(setting, idle, f"match nothing among {of}")


def say_idle(setting: str, idle: Iterable[object], why: str) -> None:
    """Give a notice that entries of a setting have no effect, if there are any.  why: a verb and its rest."""
    entries = list(idle)
    if entries:
        notice(f"{setting}: {listed(entries, 8)} {why}")


def say_idle_patterns(setting: str, patterns: Iterable[str], used: Iterable[str | None]) -> None:
    """Give a notice that names the patterns which no target uses.  used: the pattern of each target."""
    taken = set(used)
    say_idle(setting, [key for key in patterns if key not in taken], "decide nothing for any target")


def _any(names: Sequence[str], entries: Entries, match: Callable[[str, Entries], bool]) -> bool:
    return any(match(name, entries) for name in names)
