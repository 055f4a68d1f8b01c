"""Numbers for people: bytes in one family of units (binary), counts and durations."""

from pathlib import Path

KIB = 2**10
MIB = 2**20
GIB = 2**30


def size(count: float) -> str:
    """Return a number of bytes in words; from a tenth of a GiB on, in GiB.

    >>> size(512), size(4096), size(5_000_000), size(500_000_000), size(3_865_593_216)
    ('512 B', '4.0 KiB', '4.8 MiB', '0.47 GiB', '3.60 GiB')
    """
    if count >= GIB / 10:
        return f"{count / GIB:.2f} GiB"
    if count >= MIB:
        return f"{count / MIB:.1f} MiB"
    return f"{count / KIB:.1f} KiB" if count >= KIB else f"{count:.0f} B"


def size_of(folder: Path) -> str:
    """Return the size of all files of a folder together, in words."""
    return size(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()))


def number(count: float) -> str:
    """Return a count in words.

    >>> number(950), number(11_300), number(1_240_000), number(7e9)
    ('950', '11.3 k', '1.24 M', '7.00 B')
    """
    for unit, step in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= step:
            return f"{count / step:.2f} {unit}" if count < 10 * step else f"{count / step:.1f} {unit}"
    return f"{count:.0f}"


def counted(count: int, word: str) -> str:
    """Return a count with its word, which gets an s for any other number than 1.

    >>> counted(1, "row"), counted(2_000, "training row")
    ('1 row', '2,000 training rows')
    """
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"


def duration(seconds: float) -> str:
    """Return a length of time in words.

    >>> duration(12), duration(240), duration(7500)
    ('12 s', '4 min', '2 h 05 min')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def free_memory() -> int:
    """Return the bytes of main memory that this process may still take."""
    from graft.storage.system import memory_free  # late: this file is read where nothing is stored

    free = memory_free()
    return min(free, _left_to_group(free))


def _left_to_group(free: int) -> int:
    """Return the bytes that the control group of this process may still take; `free` if it has no limit."""
    limit = Path("/sys/fs/cgroup/memory.max")
    used = Path("/sys/fs/cgroup/memory.current")
    if not limit.exists() or not used.exists() or limit.read_text(encoding="ascii").strip() == "max":
        return free
    return int(limit.read_text(encoding="ascii")) - int(used.read_text(encoding="ascii"))
