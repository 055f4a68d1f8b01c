"""Let the k-th operation on the disk fail, with every errno that a disk, a mount or a quota gives.

The call that fails must end in an error of graft's own (for a full disk the one with exit code 74), leave
nothing half-written, and keep what was saved before. Once the fault is gone the same command goes on, and
ends with the bytes of an undisturbed run. A save that tries again after a full disk may end well at once.

Operations are those at the seam of the recorder and the writer of safetensors, which is not Python: its
errors have another class. Limits of the size of a file are those of the system (RLIMIT_FSIZE), in a process
of its own, and hit every writer.
"""

import contextlib
import errno
import io
import os
import resource
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import children
import crash
import recorder
import safetensors.torch
import victims
from cells import HELD, Cell, Fault, Outcome, counts
from safetensors import SafetensorError

from graft import cli, storage
from graft.recipe import read
from graft.runs.chain import run

NUMBERS = (errno.ENOSPC, errno.EIO, errno.EACCES, errno.EROFS)
LONG = (True, False)  # from the k-th operation on, or only there


class Failing:
    """The module `os` whose k-th change of the disk fails; counts them.  k: 0 for none.

    lasting: every change of a file or folder from there on fails, but for those that tidy up.
    """

    TIDYING = ("unlink", "remove", "rmdir")

    def __init__(self, number: int = 0, k: int = 0, *, lasting: bool = False) -> None:
        self.number, self.k, self.lasting = number, k, lasting
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in recorder.CHANGES:
            return real

        def call(*arguments: Any, **keywords: Any) -> Any:
            if self.due(name):
                where = arguments[0] if isinstance(arguments[0], str | os.PathLike) else None
                raise OSError(self.number, os.strerror(self.number), where)
            return real(*arguments, **keywords)

        return call

    def getpid(self) -> int:
        """Return the number of a process that does not run, as what is left is found by another one."""
        return recorder.GONE

    def due(self, name: str) -> bool:
        """Count an operation; return whether it fails."""
        self.calls += 1
        lasts = self.lasting and name not in self.TIDYING
        return bool(self.k) and (self.calls == self.k or (lasts and self.calls > self.k))


@contextlib.contextmanager
def failing(fault: Failing) -> Iterator[Failing]:
    """Let operations fail inside the block; a full disk is not waited for."""
    import graft.formats.peft as peft

    real = safetensors.torch.save_file

    def save_file(*arguments: Any, **keywords: Any) -> None:
        if fault.due("save_file"):
            text = f"I/O error: {os.strerror(fault.number)} (os error {fault.number})"
            raise SafetensorError(f"Error while serializing: {text}")
        real(*arguments, **keywords)

    # `formats.peft` may hold the function under its own name.
    holders = [safetensors.torch, *([peft] if hasattr(peft, "save_file") else [])]
    pauses, storage.disk.PAUSES_S = storage.disk.PAUSES_S, (0.0,)
    for holder in holders:
        holder.save_file = save_file
    try:
        with recorder.seam(fault):
            yield fault
    finally:
        storage.disk.PAUSES_S = pauses
        for holder in holders:
            holder.save_file = real


def as_command(deed: Callable[[], object]) -> tuple[int, str]:
    """Do something as the command line does it. Return the exit code and what is printed."""

    def app(words: list[str], **how: Any) -> None:
        deed()

    real, cli.app = cli.app, app
    try:
        with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(io.StringIO()):
            return cli.call(["train"]), said.getvalue()
    finally:
        cli.app = real


@dataclass
class Deed:
    """Something that writes.  do: writes into a folder.  check: looks at the folder after the error, and may
    do the deed again, without a fault."""

    do: Callable[[Path], object]
    check: Callable[[Path], None]
    before: Callable[[Path], object] = lambda place: None


class Errors:
    """The stand of a deed: every operation, every number, once and lasting."""

    def __init__(self, folder: Path, deed: Deed) -> None:
        self.folder, self.deed = folder, deed
        place = self._place()
        with failing(Failing()) as counting:
            deed.do(place)
        self.total: int | None = counting.calls * len(NUMBERS) * len(LONG)

    def _place(self) -> Path:
        place = recorder.cleared(self.folder / "state") / "victim"
        place.mkdir(parents=True)
        self.deed.before(place)
        return place

    def _fault(self, case: int) -> tuple[int, int, bool]:
        case, lasting = divmod(case, len(LONG))
        k, number = divmod(case, len(NUMBERS))
        return k + 1, NUMBERS[number], LONG[lasting]

    def name(self, number: int) -> str:
        k, error, lasting = self._fault(number)
        return f"{errno.errorcode[error]} at operation {k}{' and from there on' if lasting else ''}"

    def case(self, number: int) -> Outcome:
        k, error, lasting = self._fault(number)
        place = self._place()
        with failing(Failing(error, k, lasting=lasting)):
            code, said = as_command(lambda: self.deed.do(place))
        if code not in (0, 74 if error == errno.ENOSPC else 1):
            raise Fault(f"exit code {code}: {said[:400]}")
        self.deed.check(place)
        return HELD

    def close(self) -> None:
        recorder.cleared(self.folder / "state")


def commit(folder: Path) -> Deed:
    """A second save beside a first."""

    def do(place: Path) -> None:
        storage.retry_while_full(place, 100, lambda: crash.save(place, 2), lambda text: None)

    def check(place: Path) -> None:
        newest, damaged = storage.latest(place)
        if damaged or newest is None:
            raise Fault(f"no whole checkpoint is left: {damaged}")
        storage.sweep(place)
        crash.save(place, 3)
        if [step for step, _ in storage.steps(place)] != [3]:
            raise Fault("the next save does not rotate")

    return Deed(do, check, before=lambda place: crash.save(place, 1))


def whole_run(folder: Path, kind: str) -> Deed:
    """A run, and the same command again without the fault."""
    home = victims.home(folder / "home")

    def do(place: Path) -> None:
        run(read(victims.settings(home, place, kind)))

    do(folder / "calm")
    calm = victims.trained(folder / "calm")

    def check(place: Path) -> None:
        do(place)
        if names := victims.differing(calm, victims.trained(place)):
            raise Fault(f"after going on, {names} differ")
        if left := victims.litter(place):
            raise Fault(f"{left[0]} is left")

    return Deed(do, check)


def written(folder: Path, write: crash.Write) -> Deed:
    """A file or folder written over an older one, which must be there after the error, or the new one."""
    base = crash.two_adapters(folder)

    def contents(name: str) -> dict[str, bytes]:
        # As deep as the places of the cases: certificates hold the way to the base.
        write(base, name, folder / "known" / name / "out")
        return victims.contents(folder / "known" / name / "out")

    known = [contents("one"), contents("two")]

    def check(place: Path) -> None:
        storage.refuse_occupied(place / "out", force=True)  # sweeps, as for the next one who writes there
        found = victims.contents(place / "out") if (place / "out").exists() else {}
        if found not in known:
            raise Fault("what is left is neither the new nor the old")
        if left := victims.litter(place):
            raise Fault(f"{left[0]} is left")

    def before(place: Path) -> None:
        victims.copy(folder / "known" / "one" / "out", place / "out")

    return Deed(lambda place: write(base, "two", place / "out"), check, before)


# Limits of the system


def limited(size: int) -> None:
    """Let no file of this process grow beyond a size."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    storage.disk.PAUSES_S = (0.0,)


class Limits:
    """The stand of one command: no file may exceed a size; every 64th part of the largest that it writes."""

    PARTS = 64

    def __init__(self, folder: Path, words: Callable[[Path, Path], list[str]]) -> None:
        self.folder, self.words = folder, words
        self.home = victims.home(folder / "home")
        self.total: int | None = self.PARTS
        self._command(folder / "calm" / "victim", None)
        self.calm = victims.contents(folder / "calm")
        self.largest = max(map(len, self.calm.values()))

    def _command(self, place: Path, size: int | None) -> tuple[int | None, str]:
        place.parent.mkdir(parents=True, exist_ok=True)
        before = None if size is None else partial(limited, size)
        talk = self.folder / "talk.txt"
        child = children.start(self.words(self.home, place), talk, victims.environment(self.home), before)
        return child.wait(), child.said()

    def _size(self, number: int) -> int:
        return (
            self.largest * (number + 1) // self.PARTS
        )  # of 0 bytes its own output would be the first victim

    def name(self, number: int) -> str:
        return f"no file above {self._size(number)} bytes"

    def case(self, number: int) -> Outcome:
        place = recorder.cleared(self.folder / "state") / "victim"
        code, said = self._command(place, self._size(number))
        if code not in (0, 74):
            raise Fault(f"exit code {code}: {said[-400:]}")
        if code and "bytes" not in said:
            raise Fault(f"no bytes are named: {said[-400:]}")
        code, said = self._command(place, None)
        if code != 0:
            raise Fault(f"without the limit, exit code {code}: {said[-400:]}")
        if left := victims.litter(self.folder / "state"):
            raise Fault(f"{left[0]} is left")
        return HELD

    def close(self) -> None:
        recorder.cleared(self.folder / "state")


def trains(home: Path, place: Path) -> list[str]:
    return ["train", str(victims.write_recipe(home.parent / "recipe.yaml", victims.settings(home, place)))]


def exports(to: str) -> Callable[[Path, Path], list[str]]:
    """Return what gives the words that export a model in a layout."""
    return lambda home, place: ["export", str(home / "model"), str(place), "--to", to, "--force"]


def quantizes(home: Path, place: Path) -> list[str]:
    return ["quantize", str(home / "model"), str(place), "--quant", "nf4", "--force"]


def fails(what: str, deed: Callable[[Path], Deed], small: int, release: int | None = None) -> Cell:
    return Cell("errno", what, lambda f: Errors(f, deed(f)), counts(small, 200, release))


def limits(what: str, words: Callable[[Path, Path], list[str]], small: int = 0) -> Cell:
    return Cell("file size limit", what, lambda f: Limits(f, words), counts(small, 8, None))


CELLS = [
    fails("later save", commit, 100),
    fails("run", lambda f: whole_run(f, "sft"), 10),
    fails("run that writes answers", lambda f: whole_run(f, "grpo"), 0),
    *(fails(f"export {to}", lambda f, to=to: written(f, crash.export(to)), 8 if to == "hf" else 0)
      for to in ("hf", "gguf", "peft", "gguf-lora")),
    limits("run", trains),
    *(limits(f"export {to}", exports(to)) for to in ("hf", "gguf")),
    limits("quantize", quantizes),
]  # fmt: skip
