"""How much memory this machine gives to this process."""

import os

import torch

from graft.kernels.machine import free_memory
from graft.training.log import usage


def memory() -> tuple[int, str, int]:
    """Return (bytes that this process can have in all, "cuda" or "cpu", bytes that it has now).

    On Linux the first number is what is free, or what the process's control group still allows, and what the
    process has. With a GPU it is the GPU's free memory, and the last number is 0.
    """
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0], "cuda", 0
    now = usage(torch.device("cpu"))[0]
    free = free_memory()
    if free is None:  # not Linux: all that is built in
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "cpu", now
    return free + now, "cpu", now
