"""What this machine is: its processor."""

import hashlib
import platform
import subprocess
from pathlib import Path

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
