"""Rows in memory become the lines that the same rows have in a file; what cannot is named."""

import io
import json
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
import torch

from graft.data.in_memory import is_rows, plain, splits, write_rows
from graft.errors import DataError

ROWS = [{"prompt": f"What is {i}?", "completion": f"the cat {i}"} for i in range(5)]


def written(given):
    """Return the rows that a file of these rows holds."""
    stream = io.BytesIO()
    count = write_rows(given, stream, "train row")
    lines = stream.getvalue().decode().splitlines()
    assert len(lines) == count
    return [json.loads(line) for line in lines]


class Numbered:
    """Rows by number alone, as data sets of torch have them."""

    def __len__(self):
        return len(ROWS)

    def __getitem__(self, i):
        return ROWS[i]


def pandas_table():
    return pytest.importorskip("pandas").DataFrame(ROWS)


def polars_table():
    return pytest.importorskip("polars").DataFrame(ROWS)


def polars_plan():
    return polars_table().lazy()


def arrow_table():
    return pytest.importorskip("pyarrow").Table.from_pylist(ROWS)


def arrow_batches():
    return arrow_table().to_reader(max_chunksize=2)


def data_set():
    return pytest.importorskip("datasets").Dataset.from_list(ROWS)


def data_stream():
    return data_set().to_iterable_dataset()


@pytest.mark.parametrize(
    "make",
    [
        lambda: ROWS,
        lambda: tuple(ROWS),
        lambda: iter(ROWS),
        lambda: (row for row in ROWS),
        lambda: map(dict, ROWS),
        Numbered,
        pandas_table,
        polars_table,
        polars_plan,
        arrow_table,
        arrow_batches,
        data_set,
        data_stream,
    ],
)
def test_every_form_gives_the_same_lines(make):
    given = make()
    assert is_rows(given)
    assert written(given) == ROWS


def test_a_generator_is_read_once_row_by_row():
    read = []

    def rows():
        for row in ROWS:
            read.append(row)
            yield row

    class Stream(io.BytesIO):
        def write(self, raw):
            seen.append(len(read))
            return super().write(raw)

    seen = []
    assert write_rows(rows(), Stream(), "train row") == len(ROWS)
    assert seen == [1, 2, 3, 4, 5]


def test_texts_are_rows_with_a_text():
    assert written(["one day", "another"]) == [{"text": "one day"}, {"text": "another"}]


def test_what_a_table_of_pandas_calls_missing_is_null():
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(
        {
            "prompt": ["a", None, np.nan],
            "score": [1.5, np.nan, 2.0],
            "number": pandas.array([1, None, 3], dtype="Int64"),
            "when": pandas.to_datetime(["2026-01-02", None, "2026-01-04"]),
        }
    )
    assert written(table) == [
        {"prompt": "a", "score": 1.5, "number": 1, "when": "2026-01-02T00:00:00"},
        {"prompt": None, "score": None, "number": None, "when": None},
        {"prompt": None, "score": 2.0, "number": 3, "when": "2026-01-04T00:00:00"},
    ]


def test_an_index_of_pandas_is_a_column_if_it_has_a_name():
    table = pandas_table()
    assert written(table[table.index > 2]) == ROWS[3:]
    assert written(table.set_index("prompt")) == ROWS


def test_objects_of_a_data_set_have_only_the_keys_that_their_row_had():
    datasets = pytest.importorskip("datasets")
    rows = [
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 1}]}
    ]
    assert written(datasets.Dataset.from_list(rows)) == rows


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.int64(3), 3),
        (np.float32(0.5), 0.5),
        (np.bool_(True), True),
        (np.str_("x"), "x"),
        (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        (np.array(["a", None], dtype=object), ["a", None]),
        (np.datetime64("2026-01-02"), "2026-01-02"),
        (np.datetime64("NaT"), None),
        (np.array(["2026-01-02", "NaT"], dtype="M8[ns]"), ["2026-01-02T00:00:00.000000000", None]),
        (torch.tensor([1, 2]), [1, 2]),
        (torch.tensor(2.5), 2.5),
        (float("nan"), None),
        (np.float64("nan"), None),
        (Decimal("42"), 42),
        (Decimal("0.5"), 0.5),
        (date(2026, 1, 2), "2026-01-02"),
        (datetime(2026, 1, 2, 3), "2026-01-02T03:00:00"),
        (Path("a/b"), "a/b"),
        ({1: (2, {"x": np.int8(3)})}, {"1": [2, {"x": 3}]}),
        (10**30, 10**30),
    ],
)
def test_values_become_plain(value, expected):
    found = plain(value)
    assert found == expected and type(found) is type(expected)
    json.dumps(found, allow_nan=False)


def itself():
    row = []
    row.append(row)
    return row


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (b"raw", "an object of type builtins.bytes"),
        ({1, 2}, "an object of type builtins.set"),
        (float("inf"), "the number inf"),
        ([{"x": object()}], "an object of type builtins.object"),
        (itself(), "itself, or too deep a nesting"),
    ],
)
def test_a_value_that_no_line_can_hold_is_named_with_its_row_and_column(value, named):
    with pytest.raises(DataError, match=rf"train row 2: column 'image' holds {named}"):
        written([{"image": "x"}, {"image": value}])


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ([{"a": 1}, ["b"]], r"train row 2 is a list"),
        ([{"a": 1}, None], r"train row 2 is a NoneType"),
        ([], r"there is no train row: a list without rows"),
        (iter(()), r"there is no train row"),
        ({"prompt": "x"}, r"the train rows are a dict"),
        (object(), r"the train rows are a object"),
        ([{1: "a", "1": "b"}], r"train row 1 has two columns that are called '1'"),
    ],
)
def test_what_holds_no_rows_is_named(given, named):
    with pytest.raises(DataError, match=named):
        written(given)


def test_two_columns_of_one_name_are_refused():
    table = pytest.importorskip("pandas").DataFrame([["a", "b"]], columns=["text", "text"])
    with pytest.raises(DataError, match="two columns 'text'"):
        written(table)


def test_half_a_character_reaches_the_reader_which_names_it():
    assert written([{"text": "a\ud800"}]) == [{"text": "a\ud800"}]


@pytest.mark.parametrize(
    ("given", "rows"),
    [
        ("rows.jsonl", False),
        (Path("rows.jsonl"), False),
        (None, False),
        (0.1, False),
        (["a.jsonl", "b.csv"], False),
        (["a.jsonl", "b.jsnl of mine"], False),
        ([Path("a.jsonl")], False),
        (["hub:a/b"], False),
        (["rows.jsnl"], False),  # a name with a mistake, and no text of one word
        (["owner/name"], False),
        (["Hello", "How are you?"], True),
        (["See readme.md", "See also b.txt"], True),
        (["many\nlines.txt"], True),
        ([{"text": "x"}], True),
        ([], True),
    ],
)
def test_names_are_told_from_rows(given, rows):
    assert is_rows(given) is rows


def test_the_splits_of_a_data_set_are_those_of_a_recipe():
    datasets = pytest.importorskip("datasets")
    train, held = datasets.Dataset.from_list(ROWS[:3]), datasets.Dataset.from_list(ROWS[3:])
    assert splits(datasets.DatasetDict(train=train, validation=held)) == {"train": train, "eval": held}
    assert splits(datasets.DatasetDict(train=train, test=held)) == {"train": train, "test": held}
    with pytest.raises(DataError, match="data has the splits validation"):
        splits(datasets.DatasetDict(validation=held))
    with pytest.raises(DataError, match="with the splits train, validation"):
        written(datasets.DatasetDict(train=train, validation=held))
    assert splits(ROWS) == {"train": ROWS} and splits({"train": ROWS, "eval": 0.1})["eval"] == 0.1
