"""Modules of the benchmarks, imported as their scripts import them, and forgotten afterwards."""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@contextlib.contextmanager
def imported(folders: Sequence[str], modules: Sequence[str]) -> Iterator[SimpleNamespace]:
    """Yield the modules of benchmarks by name.  folders: of `benchmarks`, in the order of the search."""
    path, known = list(sys.path), set(sys.modules)
    sys.path[:0] = [str(BENCHMARKS / name) for name in folders]
    try:
        yield SimpleNamespace(**{name: __import__(name) for name in modules})
    finally:
        sys.path[:] = path
        for name in set(sys.modules) - known:
            if str(BENCHMARKS) in (getattr(sys.modules[name], "__file__", None) or ""):
                del sys.modules[name]
