"""Measure how long the command line takes to answer if no model is needed: best of five, in seconds.

python benchmarks/startup.py
"""

import subprocess
import sys
import time

COMMANDS = {
    "graft --help": ["--help"],
    "graft methods": ["methods"],
    "graft methods lora": ["methods", "lora"],
    "graft train --help": ["train", "--help"],
    "a recipe error": ["train", "train.lerning_rate=1e-4"],
    "import graft": None,
}


def best(words: list[str] | None, times: int = 5) -> float:
    """Return the seconds of the fastest of `times` runs in fresh processes.  words: None is the import
    alone."""
    code = "import graft"
    if words is not None:
        code = f"import sys; sys.argv = ['graft', *{words!r}]; from graft.cli import main; main()"
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
        seconds.append(time.perf_counter() - began)
    return min(seconds)


if __name__ == "__main__":
    for name, words in COMMANDS.items():
        print(f"{name:<20} {best(words):.3f} s")
