"""What this machine is: its processor, and the memory that it still has."""

import hashlib
import platform
import subprocess
from pathlib import Path

from graft.sizes import KIB

NAMED = ("model name", "cpu family", "model", "stepping", "CPU implementer", "CPU part", "Features", "flags")


def processor(facts: Path = Path("/proc/cpuinfo")) -> str:
    """Return the processor's name and a hash of what it can do, such as "AMD EPYC, 3f0c91a2".

    A virtual machine may give one name to processors with different instructions, so their list counts too.
    facts: where Linux describes the processor.
    """
    try:
        lines = [
            line.partition(":") for line in facts.read_text(encoding="utf-8").split("\n\n")[0].split("\n")
        ]
        told = {key.strip(): value.strip() for key, _, value in lines if key.strip() in NAMED}
    except OSError:  # not Linux
        told = {}
    name = told.get("model name") or _brand() or platform.processor() or platform.machine()
    return f"{name}, {hashlib.sha256(str(sorted(told.items())).encode()).hexdigest()[:8]}"


def _brand() -> str:
    """Return the processor's name on macOS; nothing elsewhere."""
    if platform.system() != "Darwin":
        return ""
    asked = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def free_memory() -> int | None:
    """Return the bytes of main memory that this process may still take; None if the system is not Linux."""
    facts = Path("/proc/meminfo")
    if not facts.exists():
        return None
    free = next(
        int(line.split()[1]) * KIB
        for line in facts.read_text().splitlines()
        if line.startswith("MemAvailable")
    )
    return min(free, _left_to_group(free))


def _left_to_group(free: int) -> int:
    """Return the bytes that the control group of this process may still take; `free` if it has no limit."""
    limit = Path("/sys/fs/cgroup/memory.max")
    used = Path("/sys/fs/cgroup/memory.current")
    if not limit.exists() or not used.exists() or limit.read_text().strip() == "max":
        return free
    return int(limit.read_text()) - int(used.read_text())
