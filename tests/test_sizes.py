import doctest
import re
from pathlib import Path

from graft import sizes
from graft.planning.estimate import Plan

SRC = Path(sizes.__file__).parent


def test_the_examples_hold():
    assert doctest.testmod(sizes).attempted >= 3 and not doctest.testmod(sizes).failed


def test_plan_and_train_say_one_number_in_one_unit():
    """500,000,000 bytes were 500.0 MB in `graft train` and 0.47 GiB in `graft plan`."""
    n = 500_000_000
    parts = dict.fromkeys(("weights", "adapter", "gradients", "optimizer", "step", "allocator"), n)
    text = str(Plan("x", 1, 1, 1, parts, {"train": n}, n, n, "cpu", 1))
    assert sizes.size(n) == "0.47 GiB"
    assert set(re.findall(r"[\d.]+ [kKMG]i?B\b", text)) == {"0.47 GiB"}


def test_no_other_file_has_a_unit_of_bytes_of_its_own():
    texts = {path: path.read_text() for path in SRC.rglob("*.py") if path.name != "sizes.py"}
    unit_in_f_string = re.compile(r"} ?[KMGTkm]i?B\b")
    assert not [path.name for path, text in texts.items() if unit_in_f_string.search(text)]


def test_free_memory_is_a_number_of_bytes():
    free = sizes.free_memory()
    assert free > 2**20
