"""Feed mutated rows, adapters, models, templates and tokenizers to graft, in a process with limits.

A case must end as valid or as an error of graft's own, within seconds and without taking memory. The process
that tries cases may use so much address space beyond what it had before the first; a watchdog ends it when a
case takes too long, and a new one goes on with the next. What a case does follows from its number alone.
Failures that were found and mended are kept in seeds.json, and tried at every level.
"""

import gc
import json
import multiprocessing
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import recorder
from cells import Cell, Fault, Outcome, counts
from hostile_folders import adapters_target, models_target, tokenizers_target
from hostile_rows import rows_target, templates_target

from graft.errors import GraftError

CONTEXT = multiprocessing.get_context("forkserver")
MIB = 2**20
SECONDS, MEMORY = 5.0, 500 * MIB  # the most that a case may take
PATIENCE = 4.0  # times SECONDS until the watchdog acts: the case is over its limit anyway
ROOM = 4 * MEMORY  # of address space beyond what the process had; above it memory errors come
SEEDS = Path(__file__).parent / "seeds.json"
Target = Callable[[Path], Callable[[int], object]]  # builds what tries a case by its number
TARGETS: dict[str, Target] = {
    "rows": rows_target,
    "adapters": adapters_target,
    "models": models_target,
    "templates": templates_target,
    "tokenizers": tokenizers_target,
}


class Fuzz:
    """The stand of a target: a process that tries cases one after the other."""

    total: int | None = None

    def __init__(self, folder: Path, target: str) -> None:
        self.folder, self.target = folder, target
        self.process: Any = None

    def name(self, number: int) -> str:
        return f"{self.target}, seed {number}"

    def _begin(self) -> None:
        self.ours, theirs = CONTEXT.Pipe()
        self.process = CONTEXT.Process(target=serve, args=(theirs, self.target, str(self.folder)))
        self.process.start()
        theirs.close()
        if not self.ours.poll(300):
            raise Fault("the process that tries cases does not start")
        self.ours.recv()

    def case(self, number: int) -> Outcome:
        if self.process is None:
            self._begin()
        self.ours.send(number)
        try:
            if not self.ours.poll(SECONDS * PATIENCE):
                raise Fault(f"hangs: no answer in {SECONDS * PATIENCE:g} s")
            ended, why, seconds, memory = self.ours.recv()
        except (EOFError, ConnectionError):
            self.process.join(5)
            code, self.process = self.process.exitcode, None
            raise Fault(f"the process died with {code}") from None
        except Fault:
            self.close()
            raise
        if ended == "failed":
            raise Fault(why)
        if seconds > SECONDS:
            raise Fault(f"{ended}, but after {seconds:.1f} s of CPU")
        if memory > MEMORY:
            raise Fault(f"{ended}, but with {memory // MIB} MiB")
        return Outcome(ended, {"seconds": seconds, "memory_mib": memory / MIB})

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join(5)
            self.process = None
        recorder.cleared(self.folder / "state")


def serve(pipe: Any, target: str, folder: str) -> None:
    """Try the cases whose numbers come through the pipe; answer (verdict, why, seconds of CPU, bytes)."""
    import warnings

    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    quiet()
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    attempt = TARGETS[target](place)
    space = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (space + ROOM, resource.RLIM_INFINITY))
    gc.collect(), gc.freeze()  # what stays is not looked at again for each case
    pipe.send("ready")
    while True:
        try:
            number = pipe.recv()
        except EOFError:  # nobody is there any more
            return
        gc.collect()
        before, began = reset_peak(), time.process_time()
        verdict, why = "held", ""
        try:
            attempt(number)
            verdict = "harmless"  # valid: nothing was there to be refused
        except GraftError:
            pass
        except BaseException as error:
            verdict, why = "failed", f"{type(error).__name__}: {str(error)[:400]}"
        pipe.send((verdict, why, time.process_time() - began, max(0, peak() - before)))


def quiet() -> None:
    """Print nothing: thousands of cases warn of what they are."""
    import os

    nothing = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nothing, stream)


def reset_peak() -> int:
    """Let the kernel count the peak of this process anew; return the bytes it has now."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak() -> int:
    """Return the largest resident memory of this process since `reset_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def kept(target: str) -> list[int]:
    """Return the numbers of failures that were found before."""
    known: dict[str, list[int]] = json.loads(SEEDS.read_text())
    return known.get(target, [])


COUNTS = {
    "rows": counts(40, 2000, 100_000),
    "adapters": counts(40, 1000, 50_000),
    "models": counts(12, 300, 5_000),
    "templates": counts(5, 200, 200),
    "tokenizers": counts(5, 200, 200),
}
CELLS = [Cell("fuzz", target, lambda f, target=target: Fuzz(f, target), COUNTS[target]) for target in TARGETS]
