"""Reference: the log-probabilities of all answers under the adapter that training started from.

They are computed once, before the first step, without dropout, and kept in the run's folder, with the tensors
of an adapter that was no newborn. So a resumed run reads the numbers that it began with, and a run that goes
on from an adapter has that adapter as its reference, not the bare base.

Answers that are written while the model trains cannot be read before: for them a frozen copy of that adapter
stays attached beside it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from graft import storage
from graft.base.base import Base
from graft.data.answer_batches import AnswerBatches
from graft.data.feed import Feed
from graft.errors import CheckpointError, notice
from graft.generate.generate import evaluating
from graft.objectives.preference import answer_logprobs
from graft.stages.stage import Start

FOLDER = "reference"  # in the run's
NUMBERS, START = "log_probabilities.safetensors", "adapter.safetensors"
Values = list[list[float]]  # of every example, its answers' log-probabilities


def remembered(
    base: Base, start: Start, feeds: Mapping[str, Feed], folder: Path, identity: Mapping[str, Any]
) -> Mapping[str, Feed]:
    """Return feeds whose examples have the reference of the run in `folder`, which is computed if missing.

    start: its adapter is now as training started from it.  identity: of the run; a reference of another one
    is replaced.
    """
    kept = _kept(folder / FOLDER, identity, NUMBERS)
    if kept is None:
        count = sum(answers_of(example) for feed in feeds.values() for example in feed.examples)
        notice(f"the reference reads {count:,} answers once, before the first step")
        with base.using(start.adapter):
            values = {name: log_probabilities(base, feed) for name, feed in feeds.items()}
        kept = {name: torch.tensor([v for own in rows for v in own]) for name, rows in values.items()}
        tensors = {} if start.newborn else base.adapters[start.adapter].checkpoint_state()

        def fill(target: Path) -> None:
            storage.write_tensors(target / NUMBERS, kept)
            if tensors:
                storage.write_tensors(target / START, tensors)

        needed = sum(t.numel() * t.element_size() for t in [*kept.values(), *tensors.values()])
        storage.retry_while_full(
            folder,
            needed,
            lambda: storage.commit(folder / FOLDER, fill, {"identity": dict(identity)}),
            notice,
        )
    return {name: with_values(feed, _split(feed, kept[name])) for name, feed in feeds.items()}


def beside(base: Base, start: Start, folder: Path, identity: Mapping[str, Any]) -> None:
    """Attach a frozen copy of the adapter that training started from, and keep its tensors in the folder.

    An adapter that is newborn needs none: without it the base is the same.
    """
    name = started(start.adapter)
    if name in base.adapters:
        base.detach(name)
    tensors = {} if start.newborn else dict(base.adapters[start.adapter].checkpoint_state())
    if _kept(folder / FOLDER, identity, START if tensors else None) is None:
        needed = sum(t.numel() * t.element_size() for t in tensors.values())

        def fill(target: Path) -> None:
            if tensors:
                storage.write_tensors(target / START, tensors)

        storage.retry_while_full(
            folder,
            needed,
            lambda: storage.commit(folder / FOLDER, fill, {"identity": dict(identity)}),
            notice,
        )
    if tensors:
        base.attach(name, base.adapters[start.adapter].methods).restore_checkpoint_state(tensors)


def found(base: Base, adapter: str | None, folder: Path | None) -> None:
    """Attach that copy from the folder of a run, unless it is there; for a run that has ended.

    Raises CheckpointError if its file was changed.
    """
    file = folder / FOLDER / START if folder is not None else None
    if adapter is None or file is None or started(adapter) in base.adapters or not file.exists():
        return
    try:
        storage.validate(file.parent)
    except CheckpointError as error:
        raise CheckpointError(
            error.given,
            "the adapter that the run started from, as it was kept",
            "copy the run's folder again from where it came, or train it again",
        ) from error
    copy = base.attach(started(adapter), base.adapters[adapter].methods)
    copy.restore_checkpoint_state(load_file(file))


def name_of(base: Base, adapter: str | None) -> str | None:
    """Return the adapter that is the reference of another one; None for the bare base."""
    name = None if adapter is None else started(adapter)
    return name if name in base.adapters else None


def started(adapter: str) -> str:
    """Return the name under which the reference of an adapter is attached."""
    return f"{adapter} as it started"


def measured(base: Base, adapter: str | None, feed: Feed, folder: Path | None) -> Feed:
    """Return a feed whose examples have the reference of the run in `folder`, for rows that it did not see.

    adapter: of the run. The bare base is the reference without a run, and of one that started from it.
    """
    there = name_of(base, adapter)
    found(base, adapter, folder)
    name = name_of(base, adapter)
    try:
        with base.using(name):
            return with_values(feed, log_probabilities(base, feed))
    finally:
        if name is not None and there is None:
            base.detach(name)


def log_probabilities(base: Base, feed: Feed) -> Values:
    """Return log π(y) of every answer of every example, under the adapter in use, in evaluation mode.

    Of a judged example these are its own answer's and that of the one to another prompt.
    """
    batches: Any = feed.batches
    examples = feed.examples
    sizes = batches.sizes(examples)
    order = sorted(range(len(examples)), key=lambda i: -sizes[i])  # alike lengths together: little padding
    values: Values = [[]] * len(examples)
    with torch.no_grad(), evaluating(base):
        for at in range(0, len(order), feed.micro_batch_size):
            chosen = order[at : at + feed.micro_batch_size]
            rows = [examples[i] for i in chosen]
            if batches.packs:
                batch = AnswerBatches.packed(batches, [[example] for example in rows])
            else:
                batch = AnswerBatches.padded(batches, rows)
            on_device: Any = batch.to(base.device)
            sums, _ = answer_logprobs(base, on_device)
            for value, row in zip(sums.tolist(), batch.row.tolist(), strict=True):
                values[chosen[row]] = [*values[chosen[row]], value]
    return values


def with_values(feed: Feed, values: Sequence[Sequence[float]]) -> Feed:
    """Return a feed whose examples have these log-probabilities as their reference."""
    examples: Any = feed.examples
    if not len(examples):
        return feed
    if isinstance(examples, list):
        return replace(
            feed, examples=[replace(e, reference=own) for e, own in zip(examples, values, strict=True)]
        )
    return replace(feed, examples=replace(examples, reference=values))


def _kept(folder: Path, identity: Mapping[str, Any], file: str | None) -> dict[str, torch.Tensor] | None:
    """Return the tensors that a file of a folder holds for this run; None if it is missing or damaged.

    file: None where the folder only has to be this run's.
    """
    if not folder.exists():
        return None
    try:
        facts = storage.validate(folder)
    except CheckpointError as error:
        notice(f"{error.given}: the reference is made again")
        return None
    if not storage.is_same_run(facts["identity"], identity):
        return None
    if file is None:
        return {}
    return load_file(folder / file) if (folder / file).exists() else None


def _split(feed: Feed, flat: torch.Tensor) -> Values:
    """Return numbers in the order of the examples as one list for each."""
    counts = [answers_of(example) for example in feed.examples]
    return [part.tolist() for part in flat.split(counts)] if counts else []


def answers_of(example: Any) -> int:
    """Return how many answers of an example have log-probabilities."""
    if example.target is None:
        return len(example.parts["ends"])
    return 2 if example.parts.get("other") else 1
