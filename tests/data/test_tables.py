"""Tables as programs write them: separators, quotes, encodings, numbers of rows, null keys."""

import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stage_tools import accepts

from graft.data.layouts import recognise
from graft.data.read import records
from graft.data.rows import Reject


def read(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [r if isinstance(r, Reject) else r.fields for r in records(str(path))]


ROWS = [{"text": "a, b; c|d", "label": "1"}, {"text": 'say "no"', "label": "2"}]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_a_csv_file_is_read_by_the_separator_of_its_header(separator, quoting, tmp_path):
    text = io.StringIO()
    writer = csv.DictWriter(text, ["text", "label"], delimiter=separator, quoting=quoting)
    writer.writeheader()
    writer.writerows(ROWS)
    assert read(tmp_path, "a.csv", text.getvalue()) == ROWS


def test_a_separator_inside_a_quoted_name_separates_nothing(tmp_path):
    assert read(tmp_path, "a.csv", '"text; or a title; or both",label\nx;y,1\n') == [
        {"text; or a title; or both": "x;y", "label": "1"}
    ]


def test_a_quote_in_a_tab_file_is_a_character(tmp_path):
    content = 'text\tlabel\n"I am here .\t1\nGo away , he said ."\t0\n5\' 7" tall\t1\n"Quite so"\t0\n"\t1\n'
    assert [row["text"] for row in read(tmp_path, "a.tsv", content)] == [
        '"I am here .',
        'Go away , he said ."',
        "5' 7\" tall",
        '"Quite so"',
        '"',
    ]


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize("cell", ['He said "no".', "two\nlines", "a\ttab", '"all of it"'])
def test_tab_files_of_programs_that_quote_are_read_as_they_were_meant(cell, quoting, tmp_path):
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", quoting=quoting)
    writer.writerows([["prompt", "completion"], ["q", cell], ["r", "s"]])
    assert [row["completion"] for row in read(tmp_path, "a.tsv", text.getvalue())] == [cell, "s"]


def test_a_tab_file_that_cannot_be_made_out_is_rejected_by_line(tmp_path):
    first, second = read(tmp_path, "a.tsv", 'text\tlabel\nx\t1\n"y\tz\t2\n')
    assert first == {"text": "x", "label": "1"} and second.source.endswith(":3")
    assert second.reason == "wrong number of cells"


@given(st.lists(st.lists(st.text('ab" ', min_size=1, max_size=4), min_size=2, max_size=2), min_size=1))
def test_every_line_of_a_plain_tab_file_is_one_row(tmp_path_factory, rows):
    rows = [row for row in rows if any(cell.strip() for cell in row)]
    lines = ["prompt\tcompletion", *("\t".join(row) for row in rows)]
    made = read(tmp_path_factory.mktemp("tsv"), "a.tsv", "\n".join(lines) + "\n")
    assert len(made) == len(rows) or not rows


@pytest.mark.parametrize("head", ["", "Unnamed: 0"])
def test_the_row_numbers_of_pandas_are_passed_over(head, tmp_path):
    content = f"{head},prompt,completion\n0,a,b\n1,c,d\n"
    (tmp_path / "a.csv").write_text(content)
    rows = [recognise(record, accepts("sft")) for record in records(str(tmp_path / "a.csv"))]
    assert [(row.value, row.unused) for row in rows] == [(("a", "b"), ()), (("c", "d"), ())]


def test_columns_without_a_name_are_named_by_their_place_if_they_hold_something(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,completion,,\na,b,,\nc,d,x,\n")
    rows = [recognise(record, accepts("sft")) for record in records(str(tmp_path / "a.csv"))]
    assert [row.unused for row in rows] == [(), ("column 'column 3'",)]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-8-sig"])
@pytest.mark.parametrize(
    "name, content",
    [
        ("a.csv", "text;label\nö;1\n"),
        ("a.tsv", "text\tlabel\nö\t1\n"),
        ("a.txt", "text\tlabel\r\nö\t1\r\n"),  # what Excel calls Unicode text
        ("a.jsonl", '{"text": "ö", "label": "1"}\n'),
        ("a.json", '[{"text": "ö", "label": "1"}]'),
    ],
)
def test_files_with_a_byte_order_mark_are_read_in_its_encoding(name, content, encoding, tmp_path):
    mark = {"utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff"}.get(encoding, b"")
    assert read(tmp_path, name, mark + content.encode(encoding)) == [{"text": "ö", "label": "1"}]


@pytest.mark.parametrize(
    "name, content, line",
    [
        ("a.csv", "text,label\nok,1\nStraße,2\n", 3),
        ("a.tsv", "text\tlabel\nok\t1\nStraße\t2\n", 3),
        ("a.csv", "Straße,label\nok,1\n", 1),
        ("a.jsonl", '{"text": "ok"}\n{"text": "Straße"}\n', 2),
        ("a.txt", "ok\nStraße\n", 2),
    ],
)
def test_a_byte_of_latin_1_is_named_with_its_line(name, content, line, tmp_path):
    (reject,) = [r for r in read(tmp_path, name, content.encode("latin-1")) if isinstance(r, Reject)]
    assert (reject.reason, reject.source.rpartition(":")[2]) == ("not UTF-8", str(line))
    assert "0xdf" in reject.detail.lower() and "Windows-1252" in reject.remedy


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("array", [True, False])
def test_json_lines_that_are_no_lines_are_read_as_what_they_are(indent, array, tmp_path):
    rows = [{"text": "a", "list": [1, {"b": "}"}]}, {"text": "b"}, {"text": "c"}]
    written = (
        json.dumps(rows, indent=indent) if array else "\n".join(json.dumps(r, indent=indent) for r in rows)
    )
    assert read(tmp_path, "a.jsonl", "\n" + written + "\n\n") == rows
    assert read(tmp_path, "a.json", written) == rows


@pytest.mark.parametrize("indent", [None, 1])
def test_rows_under_data_are_rows_in_a_file_of_either_name(indent, tmp_path):
    written = json.dumps({"version": 1, "data": [{"text": "a"}, {"text": "b"}]}, indent=indent)
    assert read(tmp_path, "a.json", written) == [{"text": "a"}, {"text": "b"}]
    if indent:  # on one line it is a line
        assert read(tmp_path, "a.jsonl", written) == [{"text": "a"}, {"text": "b"}]


def test_utf_16_without_its_mark_is_told(tmp_path):
    (reject,) = read(tmp_path, "a.csv", "text,label\nx,1\n".encode("utf-16-le"))
    assert reject.reason == "NUL byte" and "UTF-16" in reject.detail


def test_rows_over_several_lines_have_the_line_where_they_begin(tmp_path):
    (tmp_path / "a.jsonl").write_text('\n{\n "text": "a"\n}\n\n{"text": "b"} {\n"text": "c"}')
    found = [r.source.rpartition(":")[2] for r in records(str(tmp_path / "a.jsonl"))]
    assert found == ["2", "6", "6"]


def test_what_breaks_a_file_of_wide_rows_is_one_reject_at_its_line(tmp_path):
    first, reject = read(tmp_path, "a.jsonl", '{\n"text": "a"\n}\n{\n"text": b\n}\n')
    assert first == {"text": "a"}
    assert (reject.source.rpartition(":")[2], reject.reason) == ("5", "bad JSON")


def test_lists_in_the_lines_of_a_file_are_no_rows(tmp_path):
    rejects = read(tmp_path, "a.jsonl", '[{"role": "user"}]\n[{"role": "user"}]\n')
    assert [r.reason for r in rejects] == ["not an object"] * 2
    assert [r.source.rpartition(":")[2] for r in rejects] == ["1", "2"]


def test_null_keys_of_a_struct_are_those_that_the_row_did_not_have(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    from pyarrow import Table

    call = {"function": {"name": "f", "arguments": {"city": "Oslo"}}}
    other = {"function": {"name": "g", "arguments": {"day": "1", "at": [{"x": 1}, {"y": 2}]}}}
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": [call, other]}]
    tools = [
        {"name": "f", "parameters": {"city": {"type": "string"}}},
        {"name": "g", "parameters": {"day": {"type": "integer"}}},
    ]
    rows = [{"messages": turns, "tools": tools}]
    parquet.write_table(Table.from_pylist(rows), tmp_path / "a.parquet")
    assert Table.from_pylist(rows).to_pylist() != rows  # the table itself has the keys of all in each
    assert [record.fields for record in records(str(tmp_path / "a.parquet"))] == rows


def test_a_text_file_that_is_a_table_is_read_as_one(tmp_path):
    table = "prompt\tcompletion\nq\ta\n\nr\tb\n"
    assert read(tmp_path, "a.txt", table) == [
        {"prompt": "q", "completion": "a"},
        {"prompt": "r", "completion": "b"},
    ]
    assert read(tmp_path, "a.txt", "text\tlabel\nq\t1") == [{"text": "q", "label": "1"}]
    for text in ("A\tstory\nof\ttabs\n", "prompt\tcompletion\nand then text.\n", "prompt completion\nq a\n"):
        assert [list(row) for row in read(tmp_path, "b.txt", text)] == [["text"]]
