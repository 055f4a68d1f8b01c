"""Our exceptions. Each says what was given, what was expected and what to do.

GraftError                exit 1
├── UsageError            exit 2    a recipe key, a command line, an argument
├── SiteError                       a place the model does not have
├── AdapterError                    an adapter that does not fit, is unknown or is in the wrong state
├── MergeError                      a merge that cannot be done, or would not be faithful
├── ModelError                      a model folder that cannot be read or trusted
├── DataError                       rows that cannot be used
├── TrainingError                   a step that must not count as success
├── CheckpointError                 a saved state that is damaged or belongs to another run
└── SpaceError            exit 74   a disk that is full
"""

import difflib
from collections.abc import Iterable


class GraftError(Exception):
    """A failure the user can act on.

    given, expected, remedy: one sentence each, without the closing full stop.
    """

    exit_code = 1

    def __init__(self, given: str, expected: str, remedy: str) -> None:
        self.given, self.expected, self.remedy = given, expected, remedy
        super().__init__(f"{given}. Expected: {expected}. To do: {remedy}.")


class UsageError(GraftError):
    """A recipe key, a command line or an argument that means nothing here."""

    exit_code = 2


class SiteError(GraftError):
    """A place the model does not have."""


class AdapterError(GraftError):
    """An adapter that does not fit, is unknown or is in the wrong state."""


class MergeError(GraftError):
    """A merge that cannot be done, or would not be faithful."""


class ModelError(GraftError):
    """A model folder that cannot be read or trusted."""


class DataError(GraftError):
    """Rows that cannot be used."""


class TrainingError(GraftError):
    """A step that must not count as success."""


class CheckpointError(GraftError):
    """A saved state that is damaged or belongs to another run."""


class SpaceError(GraftError):
    """A disk that is full."""

    exit_code = 74


def nearest(word: str, words: Iterable[str], n: int = 3) -> list[str]:
    """Up to n of `words` that look like `word`, best first; the first few where none does.

    >>> nearest("lora_alhpa", ["r", "lora_alpha", "lora_dropout"], n=1)
    ['lora_alpha']
    """
    known = list(dict.fromkeys(words))
    return difflib.get_close_matches(word, known, n=n, cutoff=0.4) or known[:n]
