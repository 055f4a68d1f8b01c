"""The memory that rows take while they are prepared does not grow with their file."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SIZE = 60 * 10**6  # bytes of the larger file

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")


def script():
    spec = importlib.util.spec_from_file_location("streaming_benchmark", ROOT / "benchmarks" / "streaming.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_a_file_takes_a_part_of_its_size_in_memory(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]))
    streaming = script()
    grown = {}
    for size in (SIZE // 3, SIZE):  # below that, the tokenizer still fills what it keeps
        streaming.write(tmp_path / f"{size}.jsonl", size)
        facts = streaming.measure(tmp_path / f"{size}.jsonl", tmp_path / "cache", 1 << 20)
        grown[size] = (facts["peak"] - facts["before"]) * streaming.MIB
    # What is left are the numbers of the rows. All in memory takes more than five times the file.
    more = (grown[SIZE] - grown[SIZE // 3]) / (SIZE - SIZE // 3)
    assert more < 0.6, f"{more:.2f} bytes of memory for each more of the file"
