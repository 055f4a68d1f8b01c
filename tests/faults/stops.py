"""Send SIGTERM or SIGINT in every phase of a command: it must stop within ten seconds, and lose nothing.

A phase is a function of the package. Some time after one of its calls began, the process gets the signal.
From that call on every forward takes a second, so that a command that does all that it had to do is too late.
The exit code must be that of the signal, the words those of a stop, nothing half-written may be left, and the
same command must then end with the bytes of an undisturbed one.
"""

import importlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import children
import recorder
import victims
from cells import Cell, Fault, Outcome, counts

OBEYED_S = 10.0
SLOW_S = 1.0  # a forward in the phase and after it
ENDING_S = 2.0  # a command that was at its end may end well in this time
CODES = {signal.SIGTERM: (143, -signal.SIGTERM), signal.SIGINT: (130, -signal.SIGINT)}
Words = Callable[[Path, Path], list[str]]


@dataclass(frozen=True)
class Phase:
    """place: module:function.  words: of the command.  calls: a signal comes in one of the first so many.
    most_s: the longest time between the call and the signal."""

    place: str
    words: Words
    calls: int = 1
    most_s: float = 0.05


def train(home: Path, output: Path, kind: str = "sft") -> list[str]:
    recipe = victims.settings(home, output, kind, evaluate={"batch_size": 1}, train={"sample_tokens": 24})
    return ["train", str(victims.write_recipe(home.parent / f"{kind}.yaml", recipe))]


def online(home: Path, output: Path) -> list[str]:
    return train(home, output, "grpo")


def after_training(*words: str) -> Words:
    """Return what gives the words of a command on a finished run, with a folder to write into."""

    def of(home: Path, output: Path) -> list[str]:
        places = {"OUT": str(output), "RUN": str(home / "run"), "MODEL": str(home / "model")}
        return [places.get(word, word) for word in words]

    return of


EXPORT = after_training("export", "RUN", "OUT", "--to", "hf", "--lossy", "--force")
GGUF = after_training("export", "RUN", "OUT", "--to", "gguf", "--lossy", "--force")
QUANTIZE = after_training("quantize", "MODEL", "OUT", "--quant", "nf4", "--force")
EVAL = after_training("eval", "RUN")
FORWARD = "graft.base.base:Base.hidden"
PHASES = {
    "planning": Phase("graft.planning.plan:plan", train),
    "loading": Phase("graft.runs.build:load", train),
    "preparation": Phase("graft.runs.run:prepare", train),
    "preflight": Phase("graft.training.loop:preflight", train),
    "step": Phase("graft.training.loop:measure", train, 6),
    "update": Phase("graft.training.optimizers:AdamW.step", train, 6),
    "evaluation": Phase("graft.runs.run:losses", train, 2, 0.2),
    "samples": Phase("graft.runs.open:Opened.ask", train, 2, 0.2),
    "saving": Phase("graft.training.checkpoint:Checkpoints.save", train, 3),
    "end": Phase("graft.training.loop:Trainer._finish", train, 1, 0.1),
    "scoring": Phase("graft.runs.run:score_rows", train, 1, 0.2),
    "report": Phase("graft.runs.run:report", train, 1, 0.1),
    "writing answers": Phase("graft.stages.online:Online.write", online, 3, 0.1),
    "measuring answers": Phase("graft.stages.online:Online.measured", online, 3),
    "merging": Phase("graft.base.base:Base.merge", EXPORT, 1, 0.1),
    "export": Phase("graft.shipping.export:certify", EXPORT, 1, 0.2),
    "export gguf": Phase("graft.shipping.export:certify", GGUF, 1, 0.2),
    "quantising": Phase("graft.runs.quantise:load", QUANTIZE, 1, 0.1),
    "eval": Phase(FORWARD, EVAL, 3, 0.5),
}  # fmt: skip


class Stops:
    """The stand of a phase: moments without end, the two signals in turn."""

    total: int | None = None

    def __init__(self, folder: Path, phase: Phase) -> None:
        self.folder, self.phase = folder, phase
        self.home = victims.home(folder / "home")
        self.trains = phase.words in (train, online)
        if not self.trains:
            self._command(train(self.home, self.home / "run"))
        calm = folder / "calm" / "victim"
        self._command(phase.words(self.home, calm))
        self.calm = (
            victims.trained(calm) if self.trains else dict.fromkeys(victims.contents(folder / "calm"), b"")
        )

    def _command(self, words: list[str]) -> None:
        child = self._start(words)
        if (code := child.wait()) != 0:
            raise Fault(f"graft {' '.join(words)} ends with {code}: {child.said()[-400:]}")

    def _start(self, words: list[str], before: Callable[[], object] | None = None) -> children.Child:
        return children.start(words, self.folder / "talk.txt", victims.environment(self.home), before)

    def _moment(self, number: int) -> tuple[int, int, float]:
        chance = random.Random(f"{self.phase.place} {number}")
        kind = (signal.SIGTERM, signal.SIGINT)[number % 2]
        return kind, chance.randint(1, self.phase.calls), chance.uniform(0.0, self.phase.most_s)

    def name(self, number: int) -> str:
        kind, call, wait_s = self._moment(number)
        return f"{signal.Signals(kind).name} {wait_s:.3f} s after call {call} of {self.phase.place}"

    def case(self, number: int) -> Outcome:
        kind, call, wait_s = self._moment(number)
        place = recorder.cleared(self.folder / "state") / "victim"
        place.parent.mkdir(parents=True)
        sent = self.folder / "sent"
        sent.unlink(missing_ok=True)
        words = self.phase.words(self.home, place)
        for wait in (wait_s, 0.0):  # at once, if the command ended before
            child = self._start(words, partial(arm, self.phase.place, call, wait, kind, str(sent)))
            code, ended = child.wait(120.0), time.time()
            if sent.exists():
                break
            recorder.cleared(place)
        else:
            raise Fault(
                f"{self.phase.place} was not called {call} times: exit code {code}: {child.said()[-300:]}"
            )
        seconds = ended - float(sent.read_text())
        self._judge(kind, code, seconds, child.said())
        if left := victims.litter(self.folder / "state"):
            raise Fault(f"{left[0]} is left")
        self._command(words)
        found = victims.trained(place) if self.trains else dict.fromkeys(
            victims.contents(self.folder / "state"), b"")  # fmt: skip
        if names := victims.differing(self.calm, found):
            raise Fault(f"after going on, {names} differ")
        return Outcome(facts={"seconds": seconds} if code else {})

    def _judge(self, kind: int, code: int | None, seconds: float, said: str) -> None:
        if code is None or seconds > OBEYED_S:
            raise Fault(f"not obeyed in {OBEYED_S:g} s: exit code {code} after {seconds:.1f} s")
        if code == 0 and seconds > ENDING_S:
            raise Fault(f"forgotten: the command went on for {seconds:.1f} s and ended well")
        if code != 0 and code not in CODES[kind]:
            raise Fault(f"exit code {code}: {said[-300:]}")
        for word in ("Traceback", "bug in Graft", "graft: error"):
            if word in said:
                raise Fault(f"a stop is told as {word!r}: {said[-300:]}")

    def close(self) -> None:
        recorder.cleared(self.folder / "state")


def arm(place: str, call: int, wait_s: float, kind: int, sent: str) -> None:
    """Let this process get a signal some time after a call of a function began; then forwards are slow."""
    for number in CODES:  # whatever the process was started with
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    module, _, name = place.partition(":")
    holder: Any = importlib.import_module(module)
    *outer, last = name.split(".")
    for part in outer:
        holder = getattr(holder, part)
    real, calls = getattr(holder, last), [0]

    def send() -> None:
        time.sleep(wait_s)
        Path(sent).write_text(str(time.time()))
        os.kill(os.getpid(), kind)

    def wrapped(*arguments: Any, **keywords: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            slow()
            threading.Thread(target=send, daemon=True).start()
        return real(*arguments, **keywords)

    setattr(holder, last, wrapped)


def slow() -> None:
    """Let every forward of a base take a second more from now on."""
    from graft.base.base import Base

    real = Base.hidden

    def hidden(*arguments: Any, **keywords: Any) -> Any:
        time.sleep(SLOW_S)
        return real(*arguments, **keywords)

    Base.hidden = hidden  # type: ignore[method-assign]


SMALL = ("evaluation",)
CELLS = [
    Cell("signals", name, lambda f, phase=phase: Stops(f, phase), counts(int(name in SMALL), 4, 40))
    for name, phase in PHASES.items()
]
