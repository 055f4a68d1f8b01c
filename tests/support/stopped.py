"""Commands in processes of their own that get a signal at a chosen moment of a chosen phase.

A phase is a function of the package. When it is called for the n-th time, a thread waits for so many seconds
and then sends the signal to its own process, so that it arrives anywhere in the phase or shortly after it;
without a wait it arrives as the function is called. Where little follows a phase, the function may wait for
its signal, so that the command cannot end first.
"""

import importlib
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    ["graft.cli", "graft.runs.chain", "graft.shipping.export", "graft.runs.quantise"]
)

# Of a run: {phase: the function in which the signal arrives}.
RUN = {
    "planning": "graft.planning.plan:plan",
    "loading": "graft.runs.build:load",
    "rows": "graft.runs.run:prepare",
    "identity": "graft.runs.run:identity",
    "preflight": "graft.training.loop:preflight",
    "step": "graft.training.loop:measure",
    "update": "graft.training.optimizers:AdamW.step",
    "evaluation": "graft.runs.run:losses",
    "samples": "graft.runs.open:Opened.ask",
    "checkpoint": "graft.training.checkpoint:Checkpoints.save",
    "adapter": "graft.training.loop:Trainer._finish",
    "scores": "graft.runs.run:score_rows",
    "report": "graft.runs.run:report",
}
# Of a run that writes the answers it learns from.
ONLINE = {
    "writing": "graft.stages.online:Online.write",
    "measuring": "graft.stages.online:Online.measured",
    "keeping": "graft.training.rollouts:Rollouts._keep",
}
KEPT = (
    "metrics.jsonl",
    "samples.md",
    "adapter/adapter_model.safetensors",
    "finished.json",
    "evaluation.json",
)


@dataclass(frozen=True)
class Moment:
    """When a signal is sent: `wait_s` after the `call`-th call of a function began.

    place: module:name.  inside: a function that is done sooner returns only after the signal was sent.
    """

    place: str
    call: int = 1
    wait_s: float = 0.0
    number: int = signal.SIGTERM
    inside: bool = False


@dataclass(frozen=True)
class End:
    """How a process ended.  seconds: from the signal; None if it was not sent.  said: on stderr."""

    code: int
    seconds: float | None
    said: str


def moments(place: str, seed: int, most_s: float = 0.05, calls: int = 1, *, inside: bool = False) -> Moment:
    """Return a moment in a phase, drawn by a seed; the signals take turns."""
    chance = random.Random(f"{place} {seed}")
    number = (signal.SIGTERM, signal.SIGINT)[seed % 2]
    return Moment(place, chance.randint(1, calls), chance.uniform(0.0, most_s), number, inside)


def command(words: list[str], moment: Moment | None, folder: Path, timeout_s: float = 120) -> End:
    """Carry out a command line in a process of its own.  folder: for what it says and when it is sent."""
    folder.mkdir(parents=True, exist_ok=True)
    sent, said = folder / "sent", folder / "said"
    sent.unlink(missing_ok=True)
    process = PROCESSES.Process(target=_child, args=(words, moment, str(sent), str(said)))
    process.start()
    process.join(timeout_s)
    ended = time.time()
    if process.exitcode is None:
        process.kill()
        process.join()
    seconds = ended - float(sent.read_text()) if sent.exists() else None
    return End(process.exitcode, seconds, said.read_text())


def outcome(run: Path) -> dict[str, bytes]:
    """Return what must not depend on how often a run was stopped."""
    return {name: (run / name).read_bytes() for name in KEPT if (run / name).exists()}


def rubbish(folder: Path) -> list[str]:
    """Return what must not be left in or beside a folder: temporary files and locks of outputs."""
    found = [*folder.rglob(".tmp-*"), *folder.rglob(".*.lock"), *folder.rglob(".*partial*")]
    return sorted(str(path) for path in found)


def _child(words: list[str], moment: Moment | None, sent: str, said: str) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):  # whatever the parent ignores
        signal.signal(number, signal.SIG_DFL)
    import torch

    from graft.cli import STOPPED, call

    torch.set_num_threads(1)
    with open(said, "w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    read, write = os.pipe()  # a person who types nothing
    os.dup2(read, 0)
    sys.stdin = os.fdopen(0)
    if moment is not None:
        _arm(moment, sent)
    code = call(words)
    os.close(write)
    sys.stdout.flush()
    sys.stderr.flush()
    if code in STOPPED:
        os._exit(code)
    sys.exit(code)


def _arm(moment: Moment, sent: str) -> None:
    """Wrap the function of a moment."""
    module, _, name = moment.place.partition(":")
    holder = importlib.import_module(module)
    *outer, last = name.split(".")
    for part in outer:
        holder = getattr(holder, part)
    real, calls = getattr(holder, last), [0]

    def wrapped(*arguments, **keywords):
        calls[0] += 1
        if calls[0] != moment.call:
            return real(*arguments, **keywords)
        if not moment.wait_s:
            _send(moment, sent)
            return real(*arguments, **keywords)
        sender = threading.Thread(target=_send, args=(moment, sent), daemon=True)
        sender.start()
        result = real(*arguments, **keywords)
        if moment.inside:
            sender.join()
        return result

    setattr(holder, last, wrapped)


def _send(moment: Moment, sent: str) -> None:
    time.sleep(moment.wait_s)
    Path(sent).write_text(str(time.time()))
    os.kill(os.getpid(), moment.number)
