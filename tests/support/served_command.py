"""A command that serves, as a process of its own: started, and stopped by a signal."""

import os
import signal
import subprocess
import sys


def started(*words, **settings):
    """Start `graft WORDS`; return the process and the lines that it has said when it listens.

    settings: variables of its environment.
    """
    code = f"import sys; sys.argv = ['graft', *{words!r}]\nfrom graft.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env={**os.environ, **settings},
    )
    said = []
    for line in process.stderr:
        said.append(line)
        if line.startswith("next"):
            break
    return process, said


def ended(process):
    """End a command by SIGTERM, and return what it still says."""
    process.send_signal(signal.SIGTERM)
    return process.communicate(timeout=60)[1]
