"""From settings to examples: held-out rows, cache, report."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from stage_tools import prepared

from graft.cli.data_report import report_lines
from graft.data import DataReport, cache


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"What is {i}?", "completion": f"the cat {i}"} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def append(file, line):
    with open(file, "a") as stream:
        stream.write(line)


def test_every_row_read_is_used_or_rejected(file, settings, llama):
    append(file, "[]\n")
    report = prepared(settings(train=file, eval=0.1, bad_rows="skip"), llama, stage="sft").report
    assert (report.read, report.train, report.eval, report.rejected) == (41, 36, 4, {"not an object": 1})


def test_duplicates_and_overlap_are_counted(tmp_path, settings, llama):
    def row(text):
        return json.dumps({"prompt": text, "completion": "four"}) + "\n"

    (tmp_path / "a.jsonl").write_text(row("a") + row("a") + row("b"))
    (tmp_path / "b.jsonl").write_text(row("b") + row("c"))
    asked = settings(train=str(tmp_path / "a.jsonl"), eval=str(tmp_path / "b.jsonl"))
    report = prepared(asked, llama, stage="sft").report
    assert (report.duplicates, report.overlap, report.train, report.eval) == (1, 1, 3, 2)
    assert any("scores will flatter" in line for line in report_lines(report))


def test_the_limit_takes_a_sample_and_the_report_says_of_how_many(file, settings, llama):
    asked = settings(train=file, limit=7, eval=0.3)
    data = prepared(asked, llama, stage="sft")
    report = data.report
    assert (report.read, report.train, report.eval, report.beyond_limit) == (40, 5, 2, 33)
    assert "data.limit takes 7 of 40 rows, sampled by seed 0" in report.notes()
    lines = [int(source.rpartition(":")[2]) for source in (*data.train.sources, *data.eval.sources)]
    assert sorted(lines) != list(range(1, 8))  # not the head of the file
    other = prepared(settings(train=file, limit=7, eval=0.3, seed=1), llama, stage="sft")
    assert set(other.train.sources) != set(data.train.sources)


def test_a_defective_row_is_found_wherever_it_stands_and_counted_beside_the_sample(file, settings, llama):
    append(file, "[]\n")
    asked = settings(train=file, limit=10, bad_rows="skip")
    report = prepared(asked, llama, stage="sft").report
    assert (report.read, report.train, report.beyond_limit, report.rejected) == (
        41,
        10,
        30,
        {"not an object": 1},
    )


def test_class_names_are_in_numerical_or_alphabetical_order(tmp_path, settings, bert):
    for labels, names in [(["b", "a", "b"], ["a", "b"]), ([10, 9, 10], ["9", "10"])]:
        text = "".join(
            json.dumps({"text": f"the cat {i}", "label": label}) + "\n" for i, label in enumerate(labels)
        )
        (tmp_path / "a.jsonl").write_text(text)
        data = prepared(settings(train=str(tmp_path / "a.jsonl")), bert, stage="classify", family="encoder")
        assert data.labels == names and [names[e.target] for e in data.train] == [
            str(label) for label in labels
        ]


def test_the_cache_gives_back_the_same_and_follows_every_change(file, settings, llama, bpe, monkeypatch):
    asked = settings(train=file, eval=0.1)
    first = prepared(asked, llama, stage="sft")
    monkeypatch.setattr("graft.data.preparation.load_rows", lambda *_, **__: pytest.fail("read again"))
    again = prepared(asked, llama, stage="sft")
    assert list(again.train) == list(first.train) and list(again.eval) == list(first.eval)
    assert again.report == first.report and again.template == first.template
    monkeypatch.undo()
    monkeypatch.setenv("GRAFT_CACHE", str(Path(file).parent / "cache"))

    def entries():
        return len(list(cache.folder().iterdir()))

    assert entries() == 1
    prepared(settings(train=file, eval=0.1, max_length=32), llama, stage="sft")
    prepared(asked, bpe, stage="sft")
    prepared(settings(train=file, eval=0.1, seed=1), llama, stage="sft")
    prepared(settings(train=file, eval=0.1, template="vicuna"), llama, stage="sft")
    append(file, '{"prompt": "x", "completion": "y"}\n')
    prepared(asked, llama, stage="sft")
    assert entries() == 6


def test_a_damaged_entry_of_the_cache_is_made_again(file, settings, llama):
    first = prepared(settings(train=file), llama, stage="sft")
    (entry,) = cache.folder().iterdir()
    for name in ("tokens.safetensors", "data.json"):
        (entry / name).write_bytes((entry / name).read_bytes()[:20])
        assert list(prepared(settings(train=file), llama, stage="sft").train) == list(first.train)
        assert cache.load(entry.name) is not None


def test_a_cache_that_cannot_be_written_is_no_error(file, settings, llama, tmp_path, monkeypatch):
    (tmp_path / "occupied").write_text("")
    monkeypatch.setenv("GRAFT_CACHE", str(tmp_path / "occupied"))
    assert len(prepared(settings(train=file), llama, stage="sft").train) == 40


def test_the_report_shows_two_rows_with_what_is_learnt(file, settings, bpe):
    report = prepared(settings(train=file), bpe, stage="sft").report
    plain = "\n".join(report_lines(report, color=False))
    assert "40 rows read   40 train   0 eval   0 rejected" in plain
    assert "What is 0?⟦the cat 0</s>⟧" in plain
    console = Console(width=200, color_system=None, record=True, file=io.StringIO())
    for line in report_lines(report):
        console.print(line, markup=True, highlight=False)
    assert "What is 0?the cat 0</s>" in console.export_text()
    assert DataReport.from_json(json.loads(json.dumps(report.json()))) == report


def test_the_report_says_what_a_template_leaves_out_and_which_rows_it_wrote(tmp_path, settings, bpe):
    asked = {"role": "user", "content": "x"}
    thought = {"role": "assistant", "content": "y", "reasoning_content": "z"}
    rows = [
        {"messages": [asked, thought]},
        {"messages": [asked, {"role": "assistant", "content": "y"}]},
        {"text": "User: x Assistant: y</s>"},
        {"text": "x"},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for _ in range(2):  # the second time from the cache
        report = prepared(settings(train=str(tmp_path / "a.jsonl")), bpe, stage="sft").report
        assert report.unused == {"reasoning_content of an assistant turn": 1}
        assert (report.rendered, report.altered_turns, report.train) == (1, 1, 4)
        notes = "\n".join(report.notes())
        assert "not read: reasoning_content of an assistant turn, in 25% of the rows" in notes
        assert "1 row with control tokens in the text, which are read as tokens" in notes


def test_a_row_without_answer_is_named_without_torch(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"prompt": "x", "completion": "y"}\n' * 500 + '{"prompt": "x", "completion": ""}\n'
    )
    program = (
        "import sys; from types import SimpleNamespace as S; from graft.data import load_rows\n"
        "from graft.data.layouts import Accepts; from graft.recipe.stages import stage_card\n"
        "data = S(train=sys.argv[1], eval=None, test=None, format='auto', bad_rows='strict', limit=None)\n"
        "data.columns = {}\n"
        "try: load_rows(data, Accepts('sft', stage_card('sft').layouts))\n"
        "except Exception as e: print(e); assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "a.jsonl")], capture_output=True, text=True
    )
    assert "a.jsonl:501: no answer" in done.stdout and done.returncode == 0, done.stderr


def test_tagged_words_are_counted_shown_and_kept_in_the_cache(tmp_path, settings, bert):
    rows = [(["the", "cat", "sat"], ["O", "B-PET", "O"]), (["a", "dog"], ["O", "B-PET"])]
    text = "".join(json.dumps({"tokens": words, "tags": tags}) + "\n" for words, tags in rows)
    (tmp_path / "a.jsonl").write_text(text)
    asked = settings(train=str(tmp_path / "a.jsonl"), max_length=4)
    first, again = (prepared(asked, bert, stage="classify", family="encoder") for _ in range(2))
    assert (
        first.labels == ["B-PET", "O"] and [e.parts["tags"] for e in first.train] == [[-100, 1, 0, -100]] * 2
    )
    assert list(again.train) == list(first.train) and again.train.parts["tags"] == first.train.parts["tags"]
    plain = "\n".join(report_lines(first.report, color=False))
    assert "2 classes   4 learnt" in plain and "1 row cut to 4 tokens" in plain
    assert "[CLS]⟦the⟧⟦cat/B-PET⟧[SEP]" in plain


@pytest.mark.parametrize("given", ["nothing", "plain", "own"])
def test_a_template_that_nobody_gave_is_told(tmp_path, settings, llama, monkeypatch, given):
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    template = "{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"
    monkeypatch.setattr(llama, "chat_template", template if given == "own" else None)
    asked = settings(train=str(tmp_path / "a.jsonl"), template="plain" if given == "plain" else None)
    told = "1 conversation written as User: and Assistant: lines" in "\n".join(
        prepared(asked, llama, stage="sft").report.notes()
    )
    assert told == (given == "nothing")
