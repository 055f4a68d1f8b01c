"""Our exceptions. Each says what was given, what was expected and what to do about it.

GraftError                exit 1    anything the user can act on
├── UsageError            exit 2    a wrong argument, recipe key or command line
├── SiteError                       the model has no such place
├── AdapterError                    an adapter is unknown, does not fit the base, or is in the wrong state
├── MergeError                      a merge is impossible, or would lose what was learned
├── ModelError                      a model folder cannot be read or trusted
├── DataError                       rows cannot be used
├── TrainingError                   a training step failed
├── Interrupted           exit 130  a signal stopped the work (143 for SIGTERM); see graft.storage.signals
├── CheckpointError                 a checkpoint is damaged, or belongs to another run
└── MachineError                    the operating system refused: a disk, a permission, memory
    └── SpaceError        exit 74   the disk is full

What changes the disk (run, train, export, save, quantise, convert) raises MachineError for every error of the
system. What only reads leaves Python's OSError as it is; the command line words both alike.

Where work goes on, but not quite as somebody may think, a Notice says so: a warning of Python, which the
command line prints as a line of its own.
"""

import difflib
import re
import sys
import warnings
from collections.abc import Iterable

_LONG = re.compile(r"\S{400,}")


class GraftError(Exception):
    """A failure that the user can act on.

    given, expected, remedy: one sentence each, without the full stop.
    """

    exit_code = 1

    def __init__(self, given: str, expected: str, remedy: str) -> None:
        self.given, self.expected, self.remedy = map(_readable, (given, expected, remedy))
        stop = "" if remedy.endswith("?") else "."
        super().__init__(f"{self.given}. Expected: {self.expected}. To do: {self.remedy}{stop}")


def _readable(text: str) -> str:
    """Return a sentence with words of hundreds of letters cut short: a file may name anything.

    >>> _readable("no tensor " + 1000 * "a")
    'no tensor aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa... (1,000 characters)'
    """
    return _LONG.sub(lambda word: f"{word.group()[:40]}... ({len(word.group()):,} characters)", text)


class UsageError(GraftError):
    """A wrong argument, recipe key or command line."""

    exit_code = 2


class SiteError(GraftError):
    """The model has no such place."""


class AdapterError(GraftError):
    """An adapter is unknown, does not fit the base, or is in the wrong state."""


class MergeError(GraftError):
    """A merge is impossible, or would lose what was learned."""


class ModelError(GraftError):
    """A model folder cannot be read or trusted."""


class DataError(GraftError):
    """Rows cannot be used."""


class TrainingError(GraftError):
    """A training step failed; the last checkpoint is untouched."""


class CheckpointError(GraftError):
    """A checkpoint is damaged, or belongs to another run."""


class MachineError(GraftError):
    """The operating system refused: a disk, a permission, memory.

    number: the system's error number, as in `errno`; 0 if there is none.
    """

    number = 0


class SpaceError(MachineError):
    """The disk is full."""

    exit_code = 74


class Notice(UserWarning):
    """Something the user must know that stops nothing: part of a setting, row or model is not used."""


def notice(text: str) -> None:
    """Say something that the user must know; it seems to come from the line that called the package."""
    frame, level = sys._getframe(1), 2
    ours = ("graft", "contextlib")  # whose frames stand between ours where a function is decorated
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ours:
        frame, level = frame.f_back, level + 1
    warnings.warn(text, Notice, stacklevel=level - 1)


def one_of(
    what: str,
    given: str,
    known: Iterable[str],
    error: type[GraftError] = UsageError,
    *,
    if_none: str = "leave it out",
) -> str:
    """Return `given` if it is one of `known`; otherwise raise `error`, which names the nearest one.

    what: the argument, key or option that the user wrote.  if_none: what to do where `known` is empty.

    >>> one_of("quant", "nf5", ["nf4", "int8"])
    Traceback (most recent call last):
    graft.errors.UsageError: quant='nf5'. Expected: one of nf4, int8. To do: did you mean 'nf4'?
    """
    names = list(known)
    if given in names:
        return given
    if not names:
        raise error(f"{what}={given!r}", f"a known {what} (there is none yet)", if_none)
    close = close_to(given, names, 1)
    remedy = f"did you mean {close[0]!r}?" if close else "choose one of these"
    raise error(f"{what}={given!r}", f"one of {', '.join(names)}", remedy)


def nearest(word: str, words: Iterable[str], n: int = 3) -> list[str]:
    """Return up to n of `words` that look like `word`, best first; the first n if none does.

    >>> nearest("lora_alhpa", ["r", "lora_alpha", "lora_dropout"], n=1)
    ['lora_alpha']
    """
    known = list(dict.fromkeys(words))
    return close_to(word, known, n) or known[:n]


def close_to(word: str, words: Iterable[str], n: int = 1, likeness: float = 0.4) -> list[str]:
    """Return up to n of `words` that look like `word`, best first.  likeness: from 0 (any) to 1 (equal)."""
    return difflib.get_close_matches(word, list(words), n=n, cutoff=likeness)


def listed(items: Iterable[object], most: int = 4, separator: str = ", ") -> str:
    """Return the first `most` items as text, and the number of those left out.

    >>> listed(["a", "b", "c", "d"], most=2)
    'a, b and 2 more'
    >>> listed(["a", "b"])
    'a, b'
    """
    texts = [str(item) for item in items]
    rest = f" and {len(texts) - most} more" if len(texts) > most else ""
    return separator.join(texts[:most]) + rest
