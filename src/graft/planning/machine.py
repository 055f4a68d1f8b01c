"""How much memory this machine gives to this process."""

from graft.sizes import free_memory
from graft.storage.system import memory_now


def memory() -> tuple[int, str, int]:
    """Return (bytes that this process can have in all, "cuda" or "cpu", bytes that it has now).

    The first number is what is free, or what the process's control group still allows, and what the process
    has. With a GPU it is the GPU's free memory, and the last number is 0.
    """
    import torch  # late: a plan that is kept needs none

    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0], "cuda", 0
    now = resident()
    return main_memory(now), "cpu", now


def main_memory(now: int) -> int:
    """Return the bytes of main memory that this process can have, which has `now` of them."""
    return free_memory() + now


def resident() -> int:
    """Return the bytes of main memory that this process has."""
    return memory_now()
