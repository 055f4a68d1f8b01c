"""Patterns: regular expressions of settings, matched against the names of modules within a bound of time.

An expression comes from a recipe, or from the file of a stranger, and Python's `re` may need longer than the
age of the universe for one such as `(([a-z_]|[a-z0-9_.])*)*!`. The package `regex`, which transformers needs
too, has a limit of time. It reads more than `re` does, so an expression must be one of `re` first: it means
what it means in PEFT.
"""

import contextlib
import functools
import re
import time
import warnings
from collections.abc import Iterable

import regex

from graft.errors import UsageError

LONGEST = 10_000  # letters of an expression, with what it repeats a number of times written out
LIMIT_S = 0.2  # of processor time for one name; a usual one takes microseconds
ALLOWED_S = 1e-4  # a match may take so long without being counted
DEBT_S = 0.15  # of all that matches took beyond it
# What `re` takes for letters and `regex` for something of its own: a brace without numbers, a class by name.
OTHERWISE = re.compile(r"\{(?!\d*(,\d*)?\})|\[:\^?\w+:\]")
TOKENS = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\{\d*(?:,\d*)?\}|.", re.DOTALL)
NAME = re.compile(r"[\w.-]+")  # a name is an expression too, whose dots stand for any letter


class Expression:
    """One compiled expression, and how much longer than it should its matches have taken of late."""

    def __init__(self, text: str) -> None:
        self.text, self.debt_s = text, 0.0
        self._compiled = _compiled(text)

    def matches(self, name: str) -> bool:
        """Return whether the whole name matches. Raises UsageError if that takes too long."""
        found = None
        while found is None:
            start = time.thread_time()
            with contextlib.suppress(TimeoutError):  # it counts all threads: this one may not have run at all
                found = self._compiled.fullmatch(name, timeout=LIMIT_S) is not None
            self.debt_s = max(0.0, self.debt_s + time.thread_time() - start - ALLOWED_S)
            if self.debt_s > DEBT_S:
                self.debt_s = 0.0
                raise self._slow()
        return found

    def _slow(self) -> UsageError:
        return UsageError(
            f"the regular expression {_short(self.text)} takes too long to match the name of one module",
            "an expression that says at once whether a name matches",
            "write it without a repetition inside a repetition, or list the names of the modules",
        )


def whole(pattern: str, name: str) -> bool:
    """Return whether an expression matches a whole name.

    Raises UsageError for text that is no expression, and for one that takes too long.

    >>> whole(r".*\\.q_proj", "layers.0.q_proj"), whole("q_proj", "layers.0.q_proj")
    (True, False)
    """
    return _expression(pattern).matches(name)


def first_at_end(patterns: Iterable[str], name: str) -> str | None:
    """Return the first of these expressions that matches the end of a name, or None.

    >>> first_at_end(["k_proj", "q_.*"], "layers.0.q_proj")
    'q_.*'
    """
    return next((pattern for pattern in patterns if _at_end(pattern, name)), None)


def _at_end(pattern: str, name: str) -> bool:
    if NAME.fullmatch(pattern):
        end = name[-len(pattern) :]
        apart = len(name) == len(pattern) or name[: -len(pattern)].endswith(".")
        return apart and (end == pattern or _alike(pattern, end))
    return _expression(rf"(.*\.)?({pattern})").matches(name)


def _alike(pattern: str, end: str) -> bool:
    same = all(theirs in (mine, ".") for mine, theirs in zip(end, pattern, strict=False))
    return same and len(end) == len(pattern)


@functools.lru_cache(maxsize=1024)
def _expression(text: str) -> Expression:
    return Expression(text)


def _compiled(text: str) -> "regex.Pattern[str]":
    """Return the compiled expression. Raises UsageError for text that is none, or not the same to `re`."""
    if len(text) > LONGEST or _written_out(text) > LONGEST:
        raise UsageError(
            f"the regular expression {_short(text)} of {len(text):,} letters",
            f"at most {LONGEST:,} letters, with all repetitions by number written out",
            "list the names of the modules instead",
        )
    remedy = "correct it, or list the names of the modules"
    odd = OTHERWISE.search(text)
    if odd:
        raise UsageError(f"{odd[0]!r} in the regular expression {_short(text)}", "names and patterns", remedy)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of sets within sets, which stay letters
            re.compile(text)
            return regex.compile(text, flags=regex.VERSION0, cache_pattern=False)
    except (re.error, regex.error, OverflowError, RecursionError, MemoryError) as error:
        raise UsageError(
            f"{_short(text)} is not a regular expression ({error})", "one that Python's `re` takes", remedy
        ) from error


def _written_out(text: str) -> int:
    """Return the length of an expression in which `a{3}` is written as `aaa`: `regex` compiles it so.

    >>> _written_out("(ab{2}){10}"), _written_out(r"[{3}]\\d{1,2}")
    (30, 3)
    """
    groups, last = [0], 0  # the length of every open group so far; that of the last item
    for token in TOKENS.findall(text):
        if token == "(":
            groups.append(0)
            continue
        if token == ")" and len(groups) > 1:
            last = groups.pop()
        elif token[0] == "{" and len(token) > 1:
            times = max([int(number[:9]) for number in re.findall(r"\d+", token)], default=1)
            last *= max(1, times) - 1  # once it has been counted
        else:
            last = 1
        groups[-1] += last
    return sum(groups)


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")
