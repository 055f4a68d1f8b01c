"""Runs that the studio starts: processes of their own, which survive the page and the server.

    HOME/.studio/NAME.yaml    the recipe, as it was given        HOME/NAME    the run's folder
    HOME/.studio/NAME.json    the process that was started       HOME/.studio/NAME.log    what it prints
    HOME/.studio/NAME.origin  where the run comes from, if whoever started it said so

A run is `graft train` in a session of its own, without a shell. Whoever signals a run asks the lock of its
folder who works there, so that any server can stop what another one, or a terminal, has started.
"""

import json
import os
import re
import shlex
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from graft import storage
from graft.errors import UsageError
from graft.recipe import read
from graft.recipe.chain import read_chain
from graft.serve.folders import NAME
from graft.storage.lock import holding
from graft.storage.system import alive, end

# -P: a file of the folder that one is in must not take the place of a library's.
PROGRAM = (sys.executable, "-P", "-c", "from graft.cli import main; main()")
MOST = 4  # runs at work that this machine is asked for
TAIL = 1 << 14  # bytes of a log that are shown
DESK = ".studio"
RESERVED = ("files",)  # folders of the studio's own beside the runs
COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_starting = threading.Lock()  # two starts of one name must not both find it free


class Refusal(UsageError):
    """What is asked does not go now: the name is taken, the run is at work or is not, too many run."""


@dataclass(frozen=True)
class Job:
    """A process that was started for a run.

    pid, begun: its number, and when the system says it began, which no later process of that number shares.
    command: as one would type it.  started: seconds since 1970.
    """

    pid: int
    begun: str
    command: str
    started: float

    @property
    def lives(self) -> bool:
        """Whether the process still runs."""
        found = _begun(self.pid)
        return alive(self.pid) if found is None else found != "" and found == self.begun


def start(home: Path, recipe: dict[str, Any], name: str, origin: dict[str, Any] | None = None) -> Path:
    """Start a run in the folder `name` of a home, and return that folder.

    recipe: of one stage or several; its `output` is replaced.  origin: what it comes from, shown on its page.
    Raises UsageError for a recipe that cannot be used and a name that is none; Refusal for a name that is
    taken, and where as many runs are at work as this machine is asked for; MachineError as all that writes.
    """
    if not NAME.fullmatch(name) or name in RESERVED:
        raise UsageError(
            f"{name[:80]!r} as the name of a run",
            "letters, digits, '.', '_' and '-', at most 64, the first a letter or a digit",
            "choose another name" if name in RESERVED else "leave the other characters out",
        )
    folder = home / name
    given = {**recipe, "output": str(folder)}
    chosen = read_chain(given) or read(given)
    with _starting, storage.named_errors("while starting the run", home):
        _require_room(home)
        if folder.exists() or ((job := job_of(home, name)) is not None and job.lives):
            raise Refusal(f"there is a run {name} already", "a name that no run has", "choose another name")
        desk = _desk(home)
        storage.replace(desk / f"{name}.yaml", chosen.yaml().encode())
        for old in ("log", "origin"):
            (desk / f"{name}.{old}").unlink(missing_ok=True)
        if origin is not None:
            storage.replace(desk / f"{name}.origin", storage.encode(origin))
        _spawn(home, name, ["train", str(desk / f"{name}.yaml")])
    return folder


def resume(home: Path, name: str, folder: Path) -> None:
    """Continue a run that was stopped. Raises Refusal if a process works on it, or too many run.

    name: of the run, by which its log is known.
    """
    with _starting, storage.named_errors("while starting the run", home):
        _require_room(home)
        job = job_of(home, name)
        if holding(folder) is not None or (job is not None and job.lives):
            raise Refusal(f"{name} is at work", "a run that was stopped", "stop it first")
        _spawn(home, name, ["train", str(folder)])


def stop(folder: Path, *, at_once: bool = False) -> int:
    """Ask the process that holds a run's folder to end; return its number.

    It ends its step and saves a checkpoint.  at_once: it is killed, and the newest checkpoint stays.
    Raises Refusal if no process of this machine holds the folder.
    """
    pid = holding(folder)
    if pid is None or pid == os.getpid():
        raise Refusal(
            f"no process of this machine works on {folder.name}",
            "a run at work",
            "look again in a moment: it may have ended, or not yet have begun",
        )
    end(pid, at_once=at_once)
    return pid


def job_of(home: Path, name: str) -> Job | None:
    """Return the process that was last started for a run here; None if there is no record of one."""
    try:
        known = json.loads((home / DESK / f"{name}.json").read_bytes())
        return Job(int(known["pid"]), str(known["begun"]), str(known["command"]), float(known["started"]))
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def jobs(home: Path) -> dict[str, Job]:
    """Return every process that was started here, by the name of its run."""
    names = sorted(path.stem for path in (home / DESK).glob("*.json"))
    return {name: job for name in names if (job := job_of(home, name)) is not None}


def origin_of(home: Path, name: str) -> dict[str, Any] | None:
    """Return what a run comes from; None where nobody said so."""
    try:
        found = json.loads((home / DESK / f"{name}.origin").read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def log_tail(home: Path, name: str) -> str:
    """Return the end of what a run's processes printed; "" if none was started here."""
    try:
        with open(home / DESK / f"{name}.log", "rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - TAIL))
            text = file.read(TAIL).decode("utf-8", "replace")
    except OSError:
        return ""
    whole = text if size <= TAIL else text.partition("\n")[2]
    return COLOURS.sub("", whole)


def _desk(home: Path) -> Path:
    desk = home / DESK
    desk.mkdir(parents=True, exist_ok=True)
    return desk


def _require_room(home: Path) -> None:
    """Raise Refusal where as many runs of the studio are at work as it starts."""
    at_work = [name for name, job in jobs(home).items() if job.lives]
    if len(at_work) >= MOST:
        raise Refusal(
            f"{len(at_work)} runs are at work: {', '.join(at_work)}",
            f"at most {MOST} at once",
            "wait until one has ended, or stop one",
        )


def _spawn(home: Path, name: str, words: list[str]) -> None:
    """Start graft with these words in a session of its own, and write down who it is."""
    desk = _desk(home)
    with open(desk / f"{name}.log", "ab") as log:
        process = subprocess.Popen(
            [*PROGRAM, *words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    command = shlex.join(["graft", *words])
    job = Job(process.pid, _begun(process.pid) or "", command, time.time())
    storage.replace(desk / f"{name}.json", storage.encode(asdict(job)))
    # Whoever started a process must hear of its end, or its number would count as alive.
    threading.Thread(target=process.wait, name=f"graft-run-{name}", daemon=True).start()


def _begun(pid: int) -> str | None:
    """Return when a process began, as Linux tells it, "" if it has ended; None on other systems."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        told = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if told[0] in "ZX" else told[19]
