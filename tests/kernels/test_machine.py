"""The facts of a machine: a processor is told by what it can do, not by its name alone."""

import pytest

from graft.kernels.machine import processor

pytestmark = pytest.mark.quick
ONE = (
    "processor : 0\nmodel name : Some CPU\nflags : fpu avx2\ncpu MHz : {mhz}\n\nprocessor : 1\nmodel name : X"
)


def described(tmp_path, text):
    (tmp_path / "cpuinfo").write_text(text)
    return processor(tmp_path / "cpuinfo")


def test_processors_of_one_name_differ_by_their_instructions_and_not_by_their_clock(tmp_path):
    slow, fast = (described(tmp_path, ONE.format(mhz=mhz)) for mhz in (2000, 3000))
    wide = described(tmp_path, ONE.replace("avx2", "avx2 avx512f").format(mhz=2000))
    assert slow == fast != wide
    assert slow.startswith("Some CPU, ") and wide.startswith("Some CPU, ")


def test_a_system_without_that_file_has_a_processor_too(tmp_path):
    assert processor(tmp_path / "missing")
