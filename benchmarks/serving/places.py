"""Servers as processes of their own: Graft's, transformers' and llama.cpp's; and folders of adapters."""

import asyncio
import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import asking

HERE = Path(__file__).parent
READY_S = 300
KEY = "benchmark"  # of whoever loads adapters


class Place:
    """A server that was started, and answers.

    words: its command, without the interpreter; {port} is filled in.
    model: what requests call its model.  health: a path that answers when it is ready.
    """

    def __init__(
        self, name: str, words: Sequence[str], model: str, log: Path, *, threads: int, health: str = "/health"
    ) -> None:
        self.name, self.model = name, model
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        environment.pop("GRAFT_API_KEY", None)
        environment["GRAFT_ADMIN_KEY"] = KEY
        command = [sys.executable, *(word.replace("{port}", str(self.port)) for word in words)]
        with log.open("w", encoding="utf-8") as file:
            self._process = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
        self._wait(health, log)

    def _wait(self, health: str, log: Path) -> None:
        until = time.monotonic() + READY_S
        while True:
            try:
                if asyncio.run(asking.ask(self.port, health)).status == 200:
                    return
            except (OSError, ValueError, IndexError, asyncio.IncompleteReadError):
                pass
            if self._process.poll() is not None or time.monotonic() > until:
                self.stop()
                raise RuntimeError(f"{self.name} does not answer:\n{log.read_text()[-2000:]}")
            time.sleep(0.1)

    def stop(self) -> int:
        """End the server as Ctrl-C does; return its exit status."""
        self._process.terminate()
        try:
            return self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    @property
    def rss(self) -> int:
        """Bytes of memory that the process holds."""
        status = Path(f"/proc/{self._process.pid}/status").read_text(encoding="utf-8")
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024

    def metrics(self) -> dict[str, float]:
        """Return the single numbers of /metrics."""
        text = asyncio.run(asking.ask(self.port, "/metrics")).text
        return numbers(text)


def numbers(text: str) -> dict[str, float]:
    """Return the values without labels in Prometheus' text."""
    lines = [line.split() for line in text.splitlines() if line and "{" not in line and line[0] != "#"]
    return {name: float(value) for name, value in lines}


def graft(model: str, log: Path, *more: str, threads: int) -> Place:
    words = [
        "-c",
        "from graft.cli import main; main()",
        "serve",
        model,
        "--port",
        "{port}",
        "--name",
        "base",
        *more,
    ]
    return Place("graft", words, "base", log, threads=threads, health="/ready")


def transformers(model: str, log: Path, *, threads: int, batching: bool = True) -> Place:
    words = ["-m", "transformers.cli.transformers", "serve", model, "--port", "{port}", "--host", "127.0.0.1"]
    words += ["--device", "cpu", "--dtype", "float32", *(["--continuous-batching"] if batching else [])]
    return Place("transformers serve", words, model, log, threads=threads)


def llama(file: Path, log: Path, *, rows: int, context: int, threads: int) -> Place:
    words = [str(HERE / "llama_server.py"), str(file), "{port}", str(rows), str(context)]
    return Place("llama.cpp", words, "model", log, threads=threads)


def missing(package: str) -> bool:
    return importlib.util.find_spec(package) is None


KINDS = ("lora", "dora", "ia3", "prefix", "bottleneck")


def write_adapters(base, folder: Path, count: int, *, scale: float = 0.1, first: int = 0) -> list[str]:
    """Write so many adapters with random values, of the five kinds in turns; return their names."""
    import torch

    import graft as package

    kinds = {
        "lora": package.LoRA(r=2, target_modules="all-linear"),
        "dora": package.LoRA(r=2, use_dora=True),
        "ia3": package.IA3(),
        "prefix": package.PrefixTuning(num_virtual_tokens=3),
        "bottleneck": package.Houlsby(),
    }
    names = []
    for number in range(first, first + count):
        kind = KINDS[number % len(KINDS)]
        adapter = base.attach("new", kinds[kind])
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for tensor in adapter.parameters():
                tensor.add_(torch.randn(tensor.shape, generator=generator).to(tensor.dtype) * scale)
        names.append(f"{kind}-{number:03}")
        adapter.save(folder / names[-1])
        base.detach("new")
    return names


def empty(folder: Path) -> Path:
    """Return a folder that is there and empty."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
