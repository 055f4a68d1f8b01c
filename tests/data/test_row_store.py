"""Rows that lie on the disk are the rows that were read: chosen, changed and encoded as those in memory."""

import json
from datetime import date

import pytest
from stage_tools import prepared

from graft.data import row_store, scratch
from graft.data.preparation import load_rows
from graft.data.row_store import RowStore, all_alike, changed, pick
from graft.data.rows import Row, alike
from graft.data.sample import sample, split
from graft.stages.stage import find

TALK = [{"role": "user", "content": "ä\n\u2028"}, {"role": "assistant", "content": "b", "weight": 1}]
KINDS = [
    Row("f:1", "text", "a\0b"),
    Row("f:2", "pair", ("q", "a")),
    Row("f:3", "chat", TALK, tools=[{"name": "x", "parameters": {"n": [1, 2.5, None, True]}}], first=1),
    Row("f:4", "label", (("one", "two"), "b")),
    Row("f:5", "label", ("one", 3)),
    Row("f:6", "tags", (["w", "v"], ["O", "B-X"])),
    Row("f:7", "ranking", ("q", ("a", "b"), None), unused=("column 'x'", "tools")),
    Row("f:8", "ranking", (TALK[:1], (TALK[1:], TALK[1:]), (2.0, 1.0))),
    Row("f:9", "judged", ("q", "a", True)),
    Row("f:10", "prompt", ("q", {"answer": "4", "n": 10**20, "deep": {"x": [1]}})),
    Row("f:11", "prompt", ("q", {"when": date(2026, 1, 2)})),
    Row("f:12", "text", "half a \ud800 character"),
]


@pytest.fixture
def spilled(monkeypatch, tmp_path):
    """Put every row on the disk, and arrays of more than 256 bytes."""
    monkeypatch.setenv("GRAFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(row_store, "MOST", 0)
    monkeypatch.setattr(scratch, "MOST", 256)


def stored(rows):
    store = RowStore()
    for row in rows:
        store.append(row)
    return store.rows()


def test_every_kind_of_row_comes_back_equal(spilled):
    rows = stored(KINDS)
    assert not isinstance(rows, list)
    assert list(rows) == KINDS and rows[-1] == KINDS[-1] and rows[2:5] == KINDS[2:5]
    for row, other in zip(rows, KINDS, strict=True):
        assert repr(row) == repr(other)  # tuples are tuples


def test_few_rows_stay_a_list():
    assert stored(KINDS) == KINDS and isinstance(stored(KINDS), list)


def test_rows_are_chosen_and_changed_as_in_a_list(spilled):
    rows, plain = stored(KINDS), list(KINDS)
    assert list(pick(rows, [3, 1, 1])) == pick(plain, [3, 1, 1])
    for part in (pick(rows, range(2, 9)), all_alike(rows)):
        assert not isinstance(part, list)
    assert list(all_alike(rows)) == alike(plain)
    assert list(changed(pick(rows, [1]), lambda row: row.value)) == [("q", "a")]


def numbered(count, kinds=4):
    return [Row(f"f:{i}", "pair", (f"q {i // 2}", f"a {i % 7}")) for i in range(count)]


def test_the_same_rows_are_held_out_and_sampled(spilled):
    rows, plain = stored(numbered(200)), numbered(200)
    for seed in (0, 1):
        assert [list(part) for part in split(rows, 0.1, seed)] == [
            list(part) for part in split(plain, 0.1, seed)
        ]
        assert list(sample(rows, 31, seed)) == list(sample(plain, 31, seed))
    classes = [Row(f"f:{i}", "label", (f"t {i}", "ab"[i % 5 == 0])) for i in range(60)]
    assert list(sample(stored(classes), 7, 3)) == list(sample(classes, 7, 3))


ASKED = {
    "sft": [{"prompt": f"What is {i}?", "completion": f"the cat {i}"} for i in range(60)],
    "pretrain": [{"text": f"the cat sat {i} times " * (1 + i % 40)} for i in range(40)],
    "classify": [{"text": f"the cat {i}", "label": "abc"[i % 3]} for i in range(60)],
    "preference": [
        {"prompt": f"{i}?", "chosen": f"the cat {i}", "rejected": f"a dog {i % 5}", "margin": 1.0}
        for i in range(60)
    ],
}


@pytest.mark.parametrize("stage", ASKED)
@pytest.mark.parametrize("chat", [False, True])
def test_prepared_data_are_equal_both_ways(stage, chat, tmp_path, settings, bpe, monkeypatch):
    given = list(ASKED[stage])
    if chat and stage == "sft":
        given[3] = {"system": "Be kind.", **given[3]}
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
    asked = settings(train=str(tmp_path / "a.jsonl"), eval=0.2, limit=50, max_length=32)
    asked.template = "chatml" if chat else None
    results = []
    for name in ("memory", "disk", "disk again"):
        monkeypatch.setenv("GRAFT_CACHE", str(tmp_path / name.split()[0]))
        if name == "disk":
            monkeypatch.setattr(row_store, "MOST", 0)
            monkeypatch.setattr(scratch, "MOST", 256)
            monkeypatch.setattr("graft.data.token_file.MOST", 0)
            loaded = load_rows(asked, find(stage).accepts())
            assert not isinstance(loaded.train, list) and not isinstance(loaded.eval, list)
        data = prepared(asked, bpe, stage=stage, objective="dpo" if stage == "preference" else "causal")
        results.append(
            (list(data.train), list(data.eval), data.report.json(), data.train.lengths(), data.labels)
        )
    assert results[0] == results[1] == results[2]
