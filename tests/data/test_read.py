"""Files of every kind give the same rows, each with its place."""

import gzip
import json
import sys
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stage_tools import accepts

from graft.data.layouts import recognise
from graft.data.read import DOCUMENT, records, sources
from graft.data.rows import Record, Reject
from graft.errors import DataError

ROWS = [{"prompt": "a", "completion": "b"}, {"prompt": 'c, "d"\ne', "completion": "\u00e9"}]


def write(folder, kind):
    path = folder / f"rows.{kind}"
    text = {
        "jsonl": "".join(json.dumps(row) + "\n" for row in ROWS),
        "json": json.dumps(ROWS, indent=1),
        "csv": 'prompt,completion\na,b\n"c, ""d""\ne",\u00e9\n',
        "tsv": 'prompt\tcompletion\na\tb\n"c, ""d""\ne"\t\u00e9\n',
    }
    if kind == "data.json":
        path.write_text(json.dumps({"data": ROWS}), "utf-8")
    elif kind == "parquet":
        table = pytest.importorskip("pyarrow").Table.from_pylist(ROWS)
        pytest.importorskip("pyarrow.parquet").write_table(table, path)
    elif kind.endswith(".gz"):
        path.write_bytes(gzip.compress(text[kind[:-3]].encode()))
    else:
        path.write_text(text[kind], "utf-8")
    return path


@pytest.mark.parametrize(
    "kind", ["jsonl", "json", "data.json", "csv", "tsv", "parquet", "jsonl.gz", "csv.gz"]
)
def test_every_kind_of_file_gives_the_same_rows(kind, tmp_path):
    path = write(tmp_path, kind)
    first = 2 if kind[:3] in ("csv", "tsv") else 1
    assert list(records(str(path))) == [Record(f"{path}:{first + i}", row) for i, row in enumerate(ROWS)]


def test_a_byte_order_mark_and_json_lines_named_json_are_read(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + b'{"text": "x"}\n{"text": "y"}\n')
    assert [record.fields["text"] for record in records(str(tmp_path / "a.json"))] == ["x", "y"]


CONLL = "-DOCSTART- -X- O\n\nEU NNP B-ORG\nrejects VBZ O\n\n\nPeter NNP B-PER\n"


@pytest.mark.parametrize("name", ["a.conll", "a.conll.gz", "train.txt", "a.tsv"])
def test_conll_files_are_sentences_at_the_line_where_they_begin(name, tmp_path):
    text = CONLL.replace(" ", "\t") if name == "a.tsv" else CONLL
    (tmp_path / name).write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    assert list(records(tmp_path / name, tagged=True)) == [
        Record(
            f"{tmp_path / name}:3", {"tokens": ["EU", "rejects"], "tags": ["B-ORG", "O"], "2": ["NNP", "VBZ"]}
        ),
        Record(f"{tmp_path / name}:7", {"tokens": ["Peter"], "tags": ["B-PER"], "2": ["NNP"]}),
    ]


def test_text_and_tables_are_no_conll_files_unless_tags_are_asked_for_and_there(tmp_path):
    (tmp_path / "a.txt").write_text(CONLL)
    (tmp_path / "b.txt").write_text("A story of words O, and more.\n")
    (tmp_path / "c.tsv").write_text("text\tlabel\na\tb\n")
    assert [list(r.fields) for r in records(tmp_path / "a.txt")] == [["text"]]
    assert [list(r.fields) for r in records(tmp_path / "b.txt", tagged=True)] == [["text"]]
    assert [list(r.fields) for r in records(tmp_path / "c.tsv", tagged=True)] == [["text", "label"]]


def test_text_is_gathered_into_documents_that_begin_at_their_line(tmp_path):
    paragraph = "word " * 400 + "\n"  # 2001 characters
    (tmp_path / "a.txt").write_text("\n" + (paragraph + "\n") * 12)
    documents = list(records(str(tmp_path / "a.txt")))
    assert [record.source.rpartition(":")[2] for record in documents] == ["2", "12", "22"]
    assert all(len(record.fields["text"]) >= DOCUMENT for record in documents[:2])
    assert "".join(r.fields["text"] for r in documents).count("word") == 12 * 400


def test_a_folder_gives_its_data_files_in_order(tmp_path):
    for name in ["b.jsonl", "a.jsonl", "README.md", ".hidden.jsonl", "sub/c.ndjson", "picture.png"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"text": "x"}\n')
    assert sources(tmp_path) == [str(tmp_path / name) for name in ["a.jsonl", "b.jsonl", "sub/c.ndjson"]]
    assert sources([tmp_path / "b.jsonl", "hub:owner/name"]) == [str(tmp_path / "b.jsonl"), "hub:owner/name"]


@pytest.mark.parametrize("name", ["missing.jsonl", "folder", "model.pkl"])
def test_what_cannot_be_read_at_all_is_an_error_with_a_remedy(name, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "model.pkl").write_bytes(b"\x80\x04")
    with pytest.raises(DataError) as caught:
        list(records(str(tmp_path / name)))
    assert name in caught.value.given and caught.value.remedy


def test_missing_readers_say_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    for name, extra in [(str(tmp_path / "a.parquet"), "graftlm[parquet]"), ("owner/name", "graftlm[hub]")]:
        with pytest.raises(DataError, match="pip install") as caught:
            list(records(name))
        assert extra in caught.value.remedy


def test_hub_rows_carry_the_name_and_their_number(monkeypatch):
    asked = []

    def load(name, split):
        asked.append((name, split))
        return [{"text": "x"}, {"text": "y"}]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load))
    assert [record.source for record in records("hub:owner/name:test")][-1] == "hub:owner/name:test:2"
    assert asked == [("owner/name", "test")]


@given(st.binary(max_size=200), st.sampled_from(["a.jsonl", "a.json", "a.csv", "a.txt", "a.jsonl.gz"]))
def test_any_bytes_become_records_or_rejects(tmp_path_factory, content, name):
    path = tmp_path_factory.mktemp("fuzz") / name
    path.write_bytes(content)
    for record in records(str(path)):
        row = record if isinstance(record, Reject) else recognise(record, accepts("sft"))
        assert row.source.startswith(str(path))


def test_many_chat_rows_are_read_and_recognised(tmp_path):
    turns = [
        {"role": "user", "content": "Where is my card?"},
        {"role": "assistant", "content": "On its way to you."},
    ]
    (tmp_path / "a.jsonl").write_text((json.dumps({"messages": turns}) + "\n") * 5000)
    rows = [recognise(record, accepts("sft")) for record in records(str(tmp_path / "a.jsonl"))]
    assert len(rows) == 5000 and all(row.kind == "chat" for row in rows)
