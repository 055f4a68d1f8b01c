"""Every kind of fault at its small level: see cells.py. `make faults` tries all of them."""

import pytest
from cells import tried
from every import CELLS
from fuzz import kept

small = [cell for cell in CELLS.values() if cell.counts["small"] != 0]


@pytest.mark.parametrize("cell", small, ids=lambda cell: cell.name)
def test_no_promise_is_broken(cell, tmp_path):
    tally = tried(cell, tmp_path, "small", kept(cell.what) if cell.part == "fuzz" else ())
    assert tally.tried and not tally.failed, tally.text()
