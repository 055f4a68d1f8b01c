"""How much memory this machine gives to this process."""

import os
from pathlib import Path

from graft.sizes import free_memory


def memory() -> tuple[int, str, int]:
    """Return (bytes that this process can have in all, "cuda" or "cpu", bytes that it has now).

    On Linux the first number is what is free, or what the process's control group still allows, and what the
    process has. With a GPU it is the GPU's free memory, and the last number is 0.
    """
    import torch  # late: a plan that is kept needs none

    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0], "cuda", 0
    now = resident()
    return main_memory(now), "cpu", now


def main_memory(now: int) -> int:
    """Return the bytes of main memory that this process can have, which has `now` of them."""
    free = free_memory()
    if free is None:  # not Linux: all that is built in
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return free + now


def resident() -> int:
    """Return the bytes of main memory that this process has."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # not Linux
        import resource
        import sys

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most * (1 if sys.platform == "darwin" else 1024)
