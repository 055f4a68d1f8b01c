"""Ask many adapters of one base a file of rows: each row is answered by the adapter that it names.

All rows are in the batches of one engine, whatever adapters they name; texts for task heads share forwards.
An answer is on the disk as soon as it has come, and the same call goes on after a kill.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from graft import seedling, storage
from graft.base.base import Base
from graft.data.read import sources
from graft.errors import UsageError, listed, nearest, one_of
from graft.generate.sampling import Sampling
from graft.runs.answer_file import answer_file, require_new
from graft.runs.answering import Answering
from graft.runs.ask_adapters import FoundAdapter, adapters_in, base_of, voices_on
from graft.runs.ask_rows import ADAPTER, BASE, AskedRow, read_rows
from graft.storage.signals import stopped


@dataclass
class Answered:
    """What came of asking a file.

    out: the file of answers.  rows: all of them.  kept: answered by an earlier start.
    errors: of the rows that could not be asked, each with its place.
    by_adapter: answers of each, "" those of the base.
    tokens: written now.  seconds: that writing took.
    base, adapters, adapter_bytes: what was loaded.
    """

    out: Path
    rows: int = 0
    kept: int = 0
    errors: list[str] = field(default_factory=list)
    by_adapter: dict[str, int] = field(default_factory=dict)
    tokens: int = 0
    seconds: float = 0.0
    base: str = ""
    adapters: int = 0
    adapter_bytes: int = 0

    def facts(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {**vars(self), "out": str(self.out), "seconds": round(self.seconds, 3)}


@storage.named_errors("while asking")
def ask(
    rows: str | Path,
    adapters: Sequence[str | Path],
    out: str | Path,
    *,
    model: str | None = None,
    adapter: str | None = None,
    quant: str | None = None,
    raw: bool = False,
    batch_size: int = 8,
    limit: int | None = None,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
    **sampling: Any,
) -> Answered:
    """Answer every row of a file by the adapter that it names, and write the rows with their answers.

    rows: a file of any kind that we read, or seedling:NAME (see `graft.runs.ask_rows`).
    adapters: folders of adapters or runs.
    out: JSON Lines, the rows in their order: their own columns, then `adapter` and `answer`, with `tokens`
    and `finish_reason` of a text, `label` and `probabilities` of a class, `tags` of words; or `error`.
    model: the base, by default the one that the adapters name.
    adapter: the one of rows without that column; "base" is the bare base.
    quant: how to store the base.  raw: texts are continued as they are, without a chat template.
    limit: ask the first so many rows.
    force: replace a file that is there.  progress: called with (rows that are done, rows).
    sampling: the fields of `Sampling`.
    Raises UsageError for wrong arguments, AdapterError for an adapter that does not fit, DataError for a file
    that cannot be read, CheckpointError for a part of another batch.
    """
    out, how = Path(out), Sampling(**sampling)
    require_new(out, force=force)
    rows = seedling.dataset(rows) if isinstance(rows, str) and rows.startswith(seedling.PREFIX) else rows
    asked, found = read_rows(rows)[:limit], adapters_in(adapters)
    names, wrong = _named(asked, found, adapter)
    used = {name: found[name] for name in found if name in names}
    base = base_of(used or found, model, quant)
    order = list(dict.fromkeys(names[row] for row in range(len(asked)) if row not in wrong))
    voices = voices_on(base, found, order, raw=raw)
    drawn = int(torch.randint(2**62, ())) if how.do_sample and how.seed is None else 0
    facts = _facts(base, rows, how, {"raw": raw, "default": adapter, "limit": limit})
    with answer_file(out, facts, {"seed": drawn}, force=force) as file:
        report = Answered(out, len(asked), len(file.kept), base=base.name, adapters=len(base.adapters))
        report.adapter_bytes = _bytes_of(base)
        work = Answering(base, asked, names, wrong, voices, how, file, progress, batch_size)
        with stopped("the answers that have come are kept"):
            began = time.perf_counter()
            report.tokens = work.run(int(file.free["seed"]))
            report.seconds = time.perf_counter() - began
            file.finish(len(asked))
    answers = [file.kept[at] for at in range(len(asked))]
    report.errors = [answer["error"] for answer in answers if "error" in answer]
    report.by_adapter = dict(Counter(answer[ADAPTER] or "" for answer in answers if "error" not in answer))
    return report


def _bytes_of(base: Base) -> int:
    """Return the bytes that the adapters of a base take."""
    states = (adapter.file_state().values() for adapter in base.adapters.values())
    return sum(tensor.nbytes for tensors in states for tensor in tensors)


def _facts(base: Base, rows: str | Path, how: Sampling, more: dict[str, Any]) -> dict[str, Any]:
    """Return what must be the same when asking goes on."""
    return {
        "contents of the rows": [storage.digest(Path(file)) for file in sources(rows) if Path(file).exists()],
        "base": base.fingerprint(),
        "adapters": {name: adapter.fingerprint() for name, adapter in sorted(base.adapters.items())},
        **{key: value for key, value in vars(how).items()},
        **more,
    }


def _named(
    rows: Sequence[AskedRow], found: dict[str, FoundAdapter], default: str | None
) -> tuple[list[str | None], dict[int, str]]:
    """Return the adapter of each row, and what is wrong with rows that name none that is there.

    Raises UsageError for a default that is not there, and for rows that need one.
    """
    if default is not None and default != BASE:
        one_of("--adapter", default, [*found, BASE])
    silent = [row.source for row in rows if not row.named and not row.unreadable]
    if silent and default is None:
        if len(found) > 1:
            raise UsageError(
                f"{len(silent):,} rows have no column {ADAPTER!r} (first {listed(silent, 2)})",
                f"the name of an adapter in each row ({listed(found)}), or nothing for the bare base",
                "add the column, or name the adapter of these rows with --adapter",
            )
        default = next(iter(found))
    names: list[str | None] = []
    wrong: dict[int, str] = {}
    for at, row in enumerate(rows):
        name = row.adapter if row.named else default
        name = None if name == BASE and BASE not in found else name
        names.append(name)
        if row.unreadable:
            wrong[at] = row.unreadable
        elif name is not None and name not in found:
            close = nearest(name, found, 1)[0]
            wrong[at] = f"there is no adapter {name!r} (of {len(found)}); did you mean {close!r}?"
    return names, wrong
