"""Rows may be huge, deep, packed or damaged anywhere: they are read, or named, with limits."""

import gzip
import json
import os
import subprocess
import sys

import pytest
from data_mutations import damaged, outcome
from stage_tools import accepts, prepared

from graft.data import load_rows
from graft.data.read_json import ROW
from graft.data.rows import DEPTH
from graft.data.unpack import SMALL
from graft.errors import DataError

CASES = int(os.environ.get("GRAFT_FUZZ", "600"))
GOOD = b'{"prompt": "What is two and two?", "completion": "four"}\n'


def told(settings, file, **more):
    """What load_rows says of a file of which some rows are skipped."""
    return load_rows(settings(train=str(file), eval=None, bad_rows="skip", **more), accepts("sft"))


def test_a_row_of_more_than_32_mib_is_named_and_the_next_is_read(tmp_path, settings):
    file = tmp_path / "a.jsonl"
    file.write_bytes(GOOD + b'{"prompt": "' + b"x" * ROW + b'", "completion": "y"}\n' + GOOD)
    loaded = told(settings, file)
    assert [row.source.rpartition(":")[2] for row in loaded.train] == ["1", "3"]
    assert [(r.source.rpartition(":")[2], r.reason) for r in loaded.rejects] == [("2", "row too long")]


def test_a_row_of_50_mb_at_the_end_is_named(tmp_path, settings):
    file = tmp_path / "a.jsonl"
    file.write_bytes(GOOD + b'{"prompt": "' + b"x" * 50_000_000)
    assert [r.reason for r in told(settings, file).rejects] == ["row too long"]


@pytest.mark.parametrize("name", ["a.json.gz", "a.csv.gz"])
def test_a_packed_file_that_holds_far_too_much_is_named(name, tmp_path, settings):
    with gzip.open(tmp_path / name, "wb", compresslevel=9) as file:
        for _ in range(SMALL // (1 << 24) + 1):
            file.write(b"x" * (1 << 24))
    assert (tmp_path / name).stat().st_size < SMALL // 500
    with pytest.raises(DataError, match=r"unpacks to more than 0.12 GiB|row too long|cannot be used"):
        told(settings, tmp_path / name)


def test_a_packed_file_of_usual_rows_is_read(tmp_path, settings):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(GOOD * 3))
    assert len(told(settings, tmp_path / "a.jsonl.gz").train) == 3


def test_a_quote_that_nobody_closed_is_told_with_the_lines_that_it_takes(tmp_path, settings):
    file = tmp_path / "a.csv"
    file.write_text("prompt,completion\nx,y\n" + 'a,"b\n' + "x,y\n" * 2_000)
    (reject,) = told(settings, file).rejects
    assert reject.source.endswith("a.csv:3") and "reach to line 2,003, 2,001 lines" in reject.detail


def deep(levels):
    return "[" * levels + "]" * levels


@pytest.mark.parametrize("levels", [DEPTH + 1, 300, 900, 5_000, 200_000])
@pytest.mark.parametrize(
    "where", ["tools", "tools as text", "arguments", "messages as text", "a column", "pretty"]
)
def test_nesting_is_named_wherever_a_row_has_it(where, levels, tmp_path, settings, bpe):
    talk = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    call = [{"type": "function", "function": {"name": "f", "arguments": "DEEP"}}]
    rows = {
        "tools": {"messages": talk, "tools": [{"type": "function", "function": {"name": "f", "x": "DEEP"}}]},
        "tools as text": {"messages": talk, "tools": deep(levels)},
        "arguments": {"messages": [talk[0], {"role": "assistant", "content": "", "tool_calls": call}]},
        "messages as text": {"messages": deep(levels)},
        "a column": {"prompt": "x", "completion": "y", "more": "DEEP"},
        "pretty": {"prompt": "x", "completion": "y", "more": "DEEP"},
    }
    row = json.dumps(rows[where], indent=1 if where == "pretty" else None).replace('"DEEP"', deep(levels))
    (tmp_path / "a.jsonl").write_text(row + "\n")
    with pytest.raises(DataError, match=r"nested too deeply|recursion|cannot be used"):
        prepared(settings(train=str(tmp_path / "a.jsonl"), eval=None), bpe, stage="sft")


MEASURED = """
import json, pathlib, resource, sys
sys.path[:0] = json.loads(sys.argv[2])
from types import SimpleNamespace
from stage_tools import prepared
from graft.models.tokenizer import tokenizer_in
from graft import seedling
folder = pathlib.Path(sys.argv[1])
tokenizer = tokenizer_in(seedling.FOLDER)
data = {"train": None, "eval": None, "test": None, "format": "auto", "max_length": 128, "pack": True,
        "columns": {}, "bad_rows": "strict", "template": None, "control_tokens": False, "limit": None,
        "seed": 0, "tag_names": []}
prepared(SimpleNamespace(**data | {"train": str(folder / "small.jsonl")}), tokenizer, stage="sft")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
done = prepared(SimpleNamespace(**data | {"train": str(folder / "large.jsonl")}), tokenizer, stage="sft")
more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(done.report.cut, more >> 10)
"""


def test_a_row_of_20_mb_takes_less_than_500_mb(tmp_path):
    long = "the cat sat on a mat " * 900_000
    talk = [{"role": "user", "content": "x"}, {"role": "assistant", "content": long}]
    environment = os.environ | {"GRAFT_CACHE": str(tmp_path / "cache")}
    (tmp_path / "small.jsonl").write_bytes(GOOD)
    (tmp_path / "large.jsonl").write_text(json.dumps({"messages": talk}) + "\n")
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(tmp_path), json.dumps(sys.path)],
        capture_output=True, text=True, timeout=300, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    cut, more = map(int, done.stdout.split())
    assert cut == 1 and more < 500


@pytest.mark.parametrize("block", range(max(CASES // 100, 1)))
def test_damaged_files_give_rows_and_named_rejects(block, tmp_path, settings):
    for number in range(100 * block, 100 * block + 100):
        file = damaged(tmp_path, number)
        try:
            rows, rejects = outcome(file, settings(eval=None, bad_rows="skip"), accepts("sft"))
        except DataError as error:
            assert len(str(error)) < 20_000, number
            continue
        assert rows, number
        assert all(len(str(reject)) < 2_000 for reject in rejects), number
