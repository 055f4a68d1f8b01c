"""How much memory this machine gives to this process."""

import os
from pathlib import Path

import torch

from graft.sizes import KIB
from graft.training.log import usage


def memory() -> tuple[int, str, int]:
    """Return (bytes that this process can have in all, "cuda" or "cpu", bytes that it has now).

    On Linux the first number is what is free, or what the process's control group still allows, and what the
    process has. With a GPU it is the GPU's free memory, and the last number is 0.
    """
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0], "cuda", 0
    now = usage(torch.device("cpu"))[0]
    facts = Path("/proc/meminfo")
    if not facts.exists():  # not Linux: all that is built in
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "cpu", now
    free = next(
        int(line.split()[1]) * KIB
        for line in facts.read_text().splitlines()
        if line.startswith("MemAvailable")
    )
    return min(free, _left_to_group(free)) + now, "cpu", now


def _left_to_group(free: int) -> int:
    """Return the bytes that the control group of this process may still take; `free` if it has no limit."""
    limit = Path("/sys/fs/cgroup/memory.max")
    used = Path("/sys/fs/cgroup/memory.current")
    if not limit.exists() or not used.exists() or limit.read_text().strip() == "max":
        return free
    return int(limit.read_text()) - int(used.read_text())
