"""Kill a server of the studio while voters vote, again and again, and count what the file of votes kept.

    python benchmarks/votes/run.py [--votes 1000] [--kills 20] [--voters 4] [--seed 0] [--json FILE]

The server is a process of its own with the real routes, and is killed by SIGKILL at random moments. Voters
vote over HTTP; where no answer comes they send the same vote again, with the same key, to the server that is
started next. At the end every vote that was acknowledged is looked for in the file, by SQLite alone.
"""

import argparse
import http.client
import json
import multiprocessing
import os
import queue
import random
import signal
import socket
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "common"))
import internals

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["graft.serve.studio.app", "graft.serve.app", "uvicorn"])


def serve(folder: Path, port: int) -> None:
    """Serve the studio of a folder, without a model, until the process is killed."""
    import uvicorn

    app = internals.bare_app()
    internals.add_studio(app, internals.Studio(folder, folder / "votes.sqlite3"))
    app.state.token = "of the pages"
    uvicorn.run(app, port=port, log_level="critical")


def fill(path: Path, count: int) -> list[str]:
    """Write battles into a new file, and return their numbers."""
    votes = internals.Votes(path)
    sides = internals.Contestant("one", "1" * 64), internals.Contestant("two", "2" * 64)
    names = [f"battle-{number:06}" for number in range(count)]
    for name in names:
        votes.keep(internals.Battle(name, time.time(), f"Why {name}?", sides, ("Yes.", "No."), {}))
    votes.close()
    return names


class Voters:
    """Threads that vote on every battle until each vote is acknowledged."""

    def __init__(self, names: list[str], port: int, count: int) -> None:
        self.port, self.acknowledged, self.again, self.seconds = port, dict[str, dict](), 0, list[float]()
        self._left: queue.SimpleQueue[str] = queue.SimpleQueue()
        for name in names:
            self._left.put(name)
        self._lock = threading.Lock()
        self.threads = [threading.Thread(target=self._vote, daemon=True) for _ in range(count)]
        for thread in self.threads:
            thread.start()

    @property
    def done(self) -> bool:
        return not any(thread.is_alive() for thread in self.threads)

    def _vote(self) -> None:
        while True:
            try:
                name = self._left.get_nowait()
            except queue.Empty:
                return
            while (answer := self._ask(name)) is None:
                with self._lock:
                    self.again += 1
                time.sleep(0.02)
            with self._lock:
                assert name not in self.acknowledged
                self.acknowledged[name] = answer

    def _ask(self, name: str) -> dict | None:
        """Return the answer to a vote; None if the server died before it came."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        body = json.dumps({"battle": name, "verdict": "a", "key": f"key-of-{name}", "voter": "me"})
        headers = {"Content-Type": "application/json", "X-Graft-Token": "of the pages"}
        begun = time.perf_counter()
        try:
            connection.request("POST", "/studio/api/votes", body, headers)
            response = connection.getresponse()
            answer = json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError):
            return None
        finally:
            connection.close()
        if response.status != 200:
            raise AssertionError(f"{response.status}: {answer}")
        self.seconds.append(time.perf_counter() - begun)
        return answer


def measure(count: int, kills: int, voters: int, seed: int) -> dict:
    """Return what was acknowledged, and what the file holds of it."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), _free_port()
        names = fill(folder / "votes.sqlite3", count)
        most = count * 9 // 10  # the last kill comes while there are votes left
        at = sorted(chance.sample(range(1, most), min(kills, most - 1)))  # acknowledged votes at each kill
        process = _started(folder, port)
        crowd, begun, killed = Voters(names, port, voters), time.monotonic(), 0
        while not crowd.done:
            if killed < len(at) and len(crowd.acknowledged) >= at[killed]:
                time.sleep(chance.uniform(0, 0.02))  # somewhere in the middle of the next votes
                os.kill(process.pid, signal.SIGKILL)
                process.join()
                killed += 1
                process = _started(folder, port)
            time.sleep(0.001)
        seconds = time.monotonic() - begun
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        kept, sound = _kept(folder / "votes.sqlite3")
    lost = [name for name in crowd.acknowledged if f"key-of-{name}" not in kept]
    return {
        "acknowledged": len(crowd.acknowledged),
        "kills": killed,
        "sent_again": crowd.again,
        "lost": len(lost),
        "twice": len(kept) - len(set(kept)),
        "kept": len(kept),
        "integrity": sound,
        "vote_ms_median": round(1000 * statistics.median(crowd.seconds), 2),
        "seconds": round(seconds, 1),
    }


def _started(folder: Path, port: int) -> multiprocessing.Process:
    process = PROCESSES.Process(target=serve, args=(folder, port), daemon=True)
    process.start()
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return process
        if not process.is_alive():
            raise RuntimeError("the server did not start")
        time.sleep(0.01)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _kept(path: Path) -> tuple[list[str], str]:
    """Return the keys of the votes in a file, and what SQLite says of its soundness."""
    with sqlite3.connect(path) as connection:
        sound = connection.execute("PRAGMA integrity_check").fetchone()[0]
        keys = [key for (key,) in connection.execute("SELECT key FROM votes")]
    connection.close()
    return keys, sound


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--votes", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--voters", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="a file for the raw runs")
    given = parser.parse_args()
    found = measure(given.votes, given.kills, given.voters, given.seed)
    print(json.dumps(found))
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")
    sys.exit(bool(found["lost"] or found["twice"] or found["integrity"] != "ok"))
