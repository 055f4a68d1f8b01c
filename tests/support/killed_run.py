"""Runs in processes of their own that are killed at a chosen forward, as if the power had failed."""

import multiprocessing
import os
import signal

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["graft.runs.chain"])


def child(settings, forward):
    """Carry out a recipe; end the process at this forward of the base (0: at none)."""
    from graft.base.base import Base
    from graft.runs.chain import run

    count, hidden = 0, Base.hidden

    def counted(base, *arguments, **keywords):
        nonlocal count
        count += base.has_values
        if count == forward:
            os.kill(os.getpid(), signal.SIGKILL)
        return hidden(base, *arguments, **keywords)

    Base.hidden = counted
    run(settings)


def finish(settings, forward=0):
    """Return the exit code of a process that carries out a recipe; see `child`."""
    process = PROCESSES.Process(target=child, args=(settings, forward))
    process.start()
    process.join(120)
    return process.exitcode
