"""What judges said of two runs or models, from files of judgements and from the runs' folders."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from graft.errors import UsageError, listed
from graft.evaluate.judgements import read_judgements
from graft.evaluate.win_rates import WinRate, win_rates
from graft.recipe.chain import last_finished

NAME = "judgements.jsonl"  # in a run's folder


def judged_between(first: str, second: str, files: Sequence[Path] = ()) -> list[WinRate]:
    """Return each judge's verdict on two runs or models, named as a command names them.

    files: of judgements; by default those called NAME in the folders of the two, where there are any.
    Raises UsageError if files were given and none has a judgement of these two.
    """
    places = files or _in_folders(first, second)
    judgements = [one for path in places for one in read_judgements(path)]
    models = sorted({model for one in judgements for model in one.pair})
    names = {model: name for name in (first, second) for model in _called(name, models)}
    known = [
        replace(one, first=names[one.first], second=names[one.second])
        for one in judgements
        if {names.get(one.first), names.get(one.second)} == {first, second} and first != second
    ]
    rates = win_rates(known, first, second)
    if files and not rates:
        raise UsageError(
            f"{listed(files)} has no judgement of {first} against {second}",
            f"judgements of both; these are of {listed(models)}",
            f"graft judge {first} {second} --by JUDGE",
        )
    return rates


def _in_folders(first: str, second: str) -> list[Path]:
    """Return the files of judgements in the folders of two runs, and of their last stages."""
    folders = [folder for name in (first, second) for folder in (name, last_finished(name))]
    found = {os.path.realpath(folder): Path(folder) / NAME for folder in folders}
    return [path for path in found.values() if path.is_file()]


def _called(name: str, models: Sequence[str]) -> list[str]:
    """Return the models of a file that mean what a command names.

    That is the same path, however it is written, or that of the last stage; else the name of the folder, as
    a file of answers has it.
    """
    paths = [os.path.abspath(path) for path in (name, last_finished(name))]
    same = [model for model in models if os.path.abspath(model) in paths]
    return same or [model for model in models if model == os.path.basename(paths[0])]
