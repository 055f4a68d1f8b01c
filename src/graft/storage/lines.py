"""Files of JSON Lines that grow while a run goes on, and may end in the middle of a line."""

import contextlib
import json
from pathlib import Path
from typing import Any


def read_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the objects in a file of JSON Lines, and how many of its lines are none."""
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return [], 0
    except OSError:
        return [], 1
    records = []
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            if isinstance(record := json.loads(line), dict):
                records.append(record)
    return records, len([line for line in lines if line.strip()]) - len(records)
