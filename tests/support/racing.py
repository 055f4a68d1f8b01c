"""Commands that start at the same moment, in processes of their own, and want the same folder."""

import re
import time
from dataclasses import dataclass
from pathlib import Path

from stopped import PROCESSES, _child

# What the loser of a race must say.
NAMED = re.compile(r"(in use|being written) by process \d+ on \S+, started \d{4}-\d\d-\d\d \d\d:\d\d:\d\d")


@dataclass(frozen=True)
class Runner:
    """One process of a race.  seconds: from the start of the race to its end."""

    code: int
    seconds: float
    said: str

    @property
    def named(self) -> bool:
        """Whether it names the process that holds the folder."""
        return bool(NAMED.search(self.said))


def race(commands: list[list[str]], folder: Path, timeout_s: float = 120) -> list[Runner]:
    """Carry out command lines at the same moment.  folder: for what they say."""
    folder.mkdir(parents=True, exist_ok=True)
    begin = PROCESSES.Event()
    said = [folder / f"said-{number}" for number in range(len(commands))]
    processes = [
        PROCESSES.Process(target=_racer, args=(words, str(file), begin))
        for words, file in zip(commands, said, strict=True)
    ]
    for process in processes:
        process.start()
    time.sleep(0.3)  # until all of them wait
    begin.set()
    began, seconds = time.monotonic(), {}
    while len(seconds) < len(processes) and time.monotonic() - began < timeout_s:
        for number, process in enumerate(processes):
            if number not in seconds and process.exitcode is not None:
                seconds[number] = time.monotonic() - began
        time.sleep(0.02)
    for process in processes:
        process.kill()
        process.join()
    return [
        Runner(process.exitcode, seconds.get(number, timeout_s), file.read_text())
        for number, (process, file) in enumerate(zip(processes, said, strict=True))
    ]


def _racer(words, said, begin):
    begin.wait()
    _child(words, None, "", said)
