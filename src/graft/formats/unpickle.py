"""The child process that opens one legacy pickle, weights only, and writes its tensors as safetensors.

Run as `python -I unpickle.py SOURCE TARGET`; never imported. torch's weights-only reader builds tensors and
plain containers and refuses everything else. Should it fail us, this process holds no work, no limits worth
breaking and no open files but these two.
"""

import contextlib
import mmap
import os
import sys


def limit(size: int) -> None:
    """Bound what this process may still take: memory, processor time, written bytes (on Unix only)."""
    try:
        import resource  # absent on Windows
    except ImportError:
        return
    written = 4 * size + 2**20
    limits = {"CORE": 0, "CPU": 300, "FSIZE": written}
    if os.path.exists("/proc/self/statm"):
        with open("/proc/self/statm", encoding="ascii") as file:
            mapped = int(file.read().split()[0]) * mmap.PAGESIZE
        limits["AS"] = mapped + 8 * size + 2**29
    for name, most in limits.items():
        with contextlib.suppress(ValueError, OSError):  # a system may refuse one of them
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most))


def main(source: str, target: str) -> None:
    """Read `source`, a flat dict of tensors, and write `target`; exit 1 with one line where that fails."""
    import torch  # before the limits: the library itself maps gigabytes
    from safetensors.torch import save_file

    limit(os.path.getsize(source))
    try:
        state = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a hostile file provokes, the answer is the same
        sys.exit(
            f"weights-only reading refused it ({type(error).__name__}: {str(error).splitlines()[0][:200]})"
        )
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        sys.exit("it is not a flat dict of tensors")
    save_file({str(key): value.detach().clone().contiguous() for key, value in state.items()}, target)


if __name__ == "__main__":
    main(*sys.argv[1:])
