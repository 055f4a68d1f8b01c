"""Where the rewards of answers come from: adapters of stage reward, and functions of the user's own.

runs/reward                   a run of stage reward, or the folder of its adapter (`reward_adapters`)
package.module:function       a function (`reward_calls`), also of a file: folder/file.py:function
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

from graft.base.base import Base
from graft.core.functions import fingerprint, imported
from graft.errors import DataError, UsageError, listed
from graft.stages.reward_adapters import attached, read
from graft.stages.reward_calls import Answered, called

__all__ = ["Answered", "Scores", "combined", "fingerprints", "is_function", "scores", "weights"]

Scores = dict[str, list[float | None]]  # of every reward, one for each answer; None where it does not apply


def weights(rewards: Mapping[str, float] | Sequence[str] | str) -> dict[str, float]:
    """Return the setting `rewards` as weights by name; a name alone has the weight 1.

    >>> weights(["runs/reward", "mine.py:short"])
    {'runs/reward': 1.0, 'mine.py:short': 1.0}

    Raises UsageError if there is none, one twice, or no finite weight other than 0.
    """
    names: list[Any] = [rewards] if isinstance(rewards, str) else list(rewards or ())
    given = rewards if isinstance(rewards, Mapping) else {str(name): 1.0 for name in names}
    named = all(isinstance(name, str) and name for name in names) and len(given) == len(names)
    if not named or not all(map(_finite, given.values())) or not any(given.values()):
        raise UsageError(
            f"stage.rewards={rewards!r}",
            "a name, a list of different names, or {name: weight}, with a weight that is not 0",
            "name a run of stage reward, or a function as package.module:function",
        )
    return {name: float(weight) for name, weight in given.items()}


def _finite(weight: Any) -> bool:
    return isinstance(weight, Real) and not isinstance(weight, bool) and math.isfinite(weight)


def is_function(name: str) -> bool:
    """Return whether the name of a reward is the import path of a function, and not a folder."""
    place, _, function = name.rpartition(":")
    return bool(place) and function.isidentifier() and not Path(name).is_dir()


def scores(
    base: Base,
    names: Iterable[str],
    answered: Sequence[Answered],
    *,
    batch_size: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> Scores:
    """Return the scores of all answers by every reward.

    Adapters are attached to the base where they are not yet. They read the ids as they were written, and
    answers to one prompt share it if they are neighbours in `answered`.
    batch_size: answers that an adapter reads at once.  progress: is called with (scores so far, all).
    Raises UsageError for a function that fails, or returns something else; it names the row. Raises what
    `reward_adapters` does.
    """
    names = list(dict.fromkeys(names))
    functions = {name: imported(name, "reward") for name in names if is_function(name)}
    adapters = {name: attached(base, name) for name in names if name not in functions}
    found: Scores = {}

    def tell(done: int) -> None:
        if progress is not None:
            progress(len(found) * len(answered) + done, len(names) * len(answered))

    for name, adapter in adapters.items():
        found[name] = [
            *read(
                base,
                adapter,
                [one.prompt_ids for one in answered],
                [one.ids for one in answered],
                [one.source for one in answered],
                batch_size=batch_size,
                progress=tell,
            )
        ]
    if functions:
        found |= called(functions, answered)
        tell(0)
    return {name: found[name] for name in names}


def combined(
    scores: Mapping[str, Sequence[float | None]],
    weights: Mapping[str, float],
    sources: Sequence[str] | None = None,
) -> list[float]:
    """Return the weighted sum of the scores of every answer; a reward that does not apply adds nothing.

    >>> combined({"a": [1.0, None], "b": [0.5, 2.0]}, {"a": 1.0, "b": 10.0})
    [6.0, 20.0]

    sources: what the answers are called in errors. Raises DataError for an answer to which none applies.
    """
    rows = list(zip(*(scores[name] for name in weights), strict=True))
    labels = [f"answer {number}" for number in range(1, len(rows) + 1)] if sources is None else sources
    bare = [source for source, row in zip(labels, rows, strict=True) if set(row) == {None}]
    if bare:
        raise DataError(
            f"no reward applies to {listed(bare)}",
            "a number of at least one reward for every answer",
            "let a function return a number for it, add a reward, or remove the row",
        )
    pairs = [zip(weights.values(), row, strict=True) for row in rows]
    return [sum(weight * score for weight, score in own if score is not None) for own in pairs]


def fingerprints(base: Base, names: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256 of every reward: of an adapter's settings and tensors, of a function's files.

    Adapters are attached to the base where they are not yet.
    """
    return {
        name: fingerprint(name, "reward")
        if is_function(name)
        else base.adapters[attached(base, name)].fingerprint()
        for name in names
    }
