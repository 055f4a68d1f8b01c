"""A file of rows is answered by the adapters that they name, each row as if it were asked alone."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap

import pytest
from safetensors.torch import load_file
from tiny_folder import rows as tiny_rows
from tiny_folder import write_model, write_rows

import graft
from graft.base.base import Base
from graft.errors import AdapterError, CheckpointError, UsageError
from graft.evaluate.answer_files import read_answers
from graft.methods.ia3 import IA3
from graft.methods.lora import LoRA
from graft.methods.pfeiffer import Pfeiffer
from graft.methods.prefix import PrefixTuning
from graft.methods.task_head import TaskHead
from graft.runs.answer_file import part_of
from graft.runs.ask import ask
from models import randomise

KINDS = {
    "lora": LoRA(r=2),
    "ia3": IA3(),
    "pfeiffer": Pfeiffer(m=4),
    "prefix": PrefixTuning(num_virtual_tokens=2),
}
HOW = {"max_new_tokens": 6}


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def save_adapters(base, folder, methods):
    """Save random adapters of these methods into folders of their names."""
    for seed, (name, method) in enumerate(methods.items()):
        randomise(base.attach(name, method), seed)
        base.adapters[name].save(folder / name)
        base.detach(name)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A tiny model, four adapters of it, one of them with a task head."""
    folder = tmp_path_factory.mktemp("ask")
    write_model(folder / "model")
    base = graft.load(folder / "model", dtype="fp32")
    heads = {"topic": [LoRA(r=2), TaskHead(labels=("home", "street", "sea"))]}
    save_adapters(base, folder / "adapters", {**KINDS, **heads})
    return folder


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    """Compute in fp32: in bf16 the size of a batch may decide between two words."""
    monkeypatch.setenv("GRAFT_DTYPE", "fp32")


def asking(home, tmp_path, given, **changes):
    """Ask these rows; return the answers and the report."""
    path = write_rows(tmp_path / "rows.jsonl", given)
    report = ask(path, [home / "adapters"], tmp_path / "out.jsonl", **{**HOW, **changes})
    return lines(tmp_path / "out.jsonl"), report


def test_twelve_adapters_of_four_kinds_answer_in_one_batch_as_alone(tmp_path):
    base = graft.load("seedling", quant="nf4", dtype="fp32")
    methods = {f"{kind}{copy}": method for copy in range(3) for kind, method in KINDS.items()}
    save_adapters(base, tmp_path / "adapters", methods)
    names = [*methods, "", *reversed(methods)]
    given = [{"prompt": f"name: Silver Otter {at}", "adapter": name} for at, name in enumerate(names)]
    found, report = asking(tmp_path, tmp_path, given, quant="nf4", batch_size=len(given))
    assert report.adapters == 12 and not report.errors and report.rows == len(given) == 25
    assert report.by_adapter == {**dict.fromkeys(methods, 2), "": 1}
    for name in methods:
        base.load_adapter(tmp_path / "adapters" / name, name)
    chat = bool(base.tokenizer.chat_template)
    for row, answer in zip(given, found, strict=True):
        prompt = [{"role": "user", "content": row["prompt"]}] if chat else row["prompt"]
        (alone,) = base.complete([prompt], adapters=[row["adapter"] or None], **HOW)
        assert answer == {
            **row, "adapter": row["adapter"] or None, "answer": alone.text.strip(),
            "tokens": len(alone.tokens), "finish_reason": alone.finish_reason,
        }  # fmt: skip
    assert len({answer["answer"] for answer in found}) > 6, "the adapters must not all say the same"


def test_rows_keep_their_order_and_columns_and_no_column_is_lost(home, tmp_path):
    given = [
        {"prompt": "Day 1. ", "adapter": "lora", "id": 7, "answer": "mine", "tokens": ["x"]},
        {"text": "Day 2. ", "adapter": "topic", "label": "sea"},
        {"messages": [{"role": "user", "content": "Day 3."}], "adapter": None},
        {"instruction": "Day", "input": "4", "adapter": "prefix"},
    ]
    with pytest.warns(graft.Notice, match="answer, label, tokens: in the answers each begins with row_"):
        found, report = asking(home, tmp_path, given)
    assert not report.errors
    assert [answer["adapter"] for answer in found] == ["lora", "topic", None, "prefix"]
    first, second, third, _ = found
    assert first["id"] == 7 and first["row_answer"] == "mine" and first["row_tokens"] == ["x"]
    assert isinstance(first["answer"], str) and first["tokens"] <= 6
    assert second["row_label"] == "sea" and second["answer"] == second["label"]
    assert set(second["probabilities"]) == {"home", "street", "sea"}
    assert sum(second["probabilities"].values()) == pytest.approx(1)
    assert max(second["probabilities"], key=second["probabilities"].get) == second["label"]
    assert third["messages"] == given[2]["messages"]
    # A judge reads the file: rows with a prompt and an answer.
    write_rows(tmp_path / "judged.jsonl", found[:1])
    assert [*read_answers(tmp_path / "judged.jsonl")["judged"]] == ["Day 1. "]


def test_rows_that_cannot_be_asked_are_named_and_the_others_answered(home, tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [
        {"prompt": "Day 1. ", "adapter": "lroa"},
        {"adapter": "lora", "note": "nothing is asked"},
        {"prompt": "Day " * 200, "adapter": "lora"},
        {"text": "", "adapter": "topic"},
        {"prompt": "Day 5. ", "adapter": "lora"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[:4]) + "{\n" + json.dumps(rows[4]) + "\n")
    report = ask(path, [home / "adapters"], tmp_path / "out.jsonl", **HOW)
    found = lines(tmp_path / "out.jsonl")
    assert [at for at, answer in enumerate(found, 1) if "error" in answer] == [1, 2, 3, 4, 5]
    assert "answer" in found[5] and report.by_adapter == {"lora": 1}
    assert report.errors == [answer["error"] for answer in found[:5]]
    for at, (error, word) in enumerate(
        zip(
            report.errors, ("did you mean 'lora'", "asks nothing", "too long", "nothing", "JSON"), strict=True
        ),
        1,
    ):
        assert error.startswith(f"{path}:{at}: ") and word in error, error


def test_rows_without_an_adapter_need_one_and_the_default_may_be_the_bare_base(home, tmp_path):
    with pytest.raises(UsageError, match=r"1 rows have no column 'adapter'.*rows.jsonl:1"):
        asking(home, tmp_path, [{"prompt": "Day 1. "}])
    with pytest.raises(UsageError, match="did you mean 'prefix'"):
        asking(home, tmp_path, [{"prompt": "Day 1. "}], adapter="perfix")
    assert not (tmp_path / "out.jsonl").exists() and not part_of(tmp_path / "out.jsonl").exists()
    given = [{"prompt": "Day 1. "}, {"prompt": "Day 1. ", "adapter": "ia3"}]
    found, report = asking(home, tmp_path, given, adapter="base")
    assert [answer["adapter"] for answer in found] == [None, "ia3"] and report.adapters == 1


def test_adapters_of_another_base_are_refused(home, tmp_path):
    other = graft.load("seedling", dtype="fp32")
    save_adapters(other, tmp_path / "others", {"lora": LoRA(r=2)})
    rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": "Day", "adapter": "lora"}])
    with pytest.raises(AdapterError, match="trained on another base"):
        ask(rows, [tmp_path / "others"], tmp_path / "out.jsonl", model=str(home / "model"), **HOW)
    with pytest.raises(UsageError, match="two adapters are called lora"):
        ask(rows, [tmp_path / "others", home / "adapters"], tmp_path / "out.jsonl", **HOW)
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    (mixed / "a").symlink_to(tmp_path / "others/lora")
    (mixed / "b").symlink_to(home / "adapters/lora")
    write_rows(rows, [{"prompt": "Day", "adapter": name} for name in "ab"])
    with pytest.raises(UsageError, match="the adapters name 2 bases"):
        ask(rows, [mixed], tmp_path / "out.jsonl", **HOW)
    with pytest.raises(UsageError, match="has no adapter in it"):
        ask(rows, [home / "model"], tmp_path / "out.jsonl", **HOW)


def batch():
    """Rows for four kinds of adapters and the bare base."""
    names = [*KINDS, "topic", ""]
    return [{"prompt": row["prompt"], "adapter": names[at % 6]} for at, row in enumerate(tiny_rows(18))]


KILLED = """
    import os, signal, sys
    from graft.runs import answer_file
    from graft.runs.ask import ask
    add = answer_file.AnswerFile.add
    def counted(file, row, fields):
        add(file, row, fields)
        if len(file.kept) == 7:
            os.kill(os.getpid(), signal.SIGKILL)
    answer_file.AnswerFile.add = counted
    ask(sys.argv[1], [sys.argv[2]], sys.argv[3], max_new_tokens=6, batch_size=4)
"""


def test_a_killed_batch_goes_on_and_ends_in_the_same_file(home, tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", batch())
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    assert ask(rows, [home / "adapters"], whole, **HOW, batch_size=4).kept == 0
    words = [str(rows), str(home / "adapters"), str(out)]
    environment = {**os.environ, "GRAFT_DTYPE": "fp32"}
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(KILLED), *words], env=environment)
    assert done.returncode == -signal.SIGKILL and not out.exists()
    with part_of(out).open("ab") as file:
        file.write(b'{"sha256": "torn')
    report = ask(rows, [home / "adapters"], out, **HOW, batch_size=4)
    assert report.kept == 7 and out.read_bytes() == whole.read_bytes() and not part_of(out).exists()


class Cut(Exception):
    """Stands for a power cut."""


def test_sampled_rows_go_on_with_the_numbers_of_their_places(home, tmp_path, monkeypatch):
    rows = write_rows(tmp_path / "rows.jsonl", batch())
    how = {**HOW, "do_sample": True, "temperature": 1.5}
    out = tmp_path / "out.jsonl"
    monkeypatch.setattr("graft.runs.ask.torch.randint", lambda *_: 11)  # the seed that nobody chose
    ask(rows, [home / "adapters"], tmp_path / "whole.jsonl", **how)

    def cut(done, total):
        if done == 5:
            raise Cut

    with pytest.raises(Cut):
        ask(rows, [home / "adapters"], out, **how, progress=cut)
    monkeypatch.setattr("graft.runs.ask.torch.randint", lambda *_: 12)  # that of the first start counts
    ask(rows, [home / "adapters"], out, **how)
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_another_batch_does_not_go_on_in_the_file(home, tmp_path):
    rows, out = write_rows(tmp_path / "rows.jsonl", batch()), tmp_path / "out.jsonl"

    def cut(done, total):
        raise Cut

    with pytest.raises(Cut):
        ask(rows, [home / "adapters"], out, **HOW, progress=cut)
    with pytest.raises(CheckpointError, match=r"answers of another batch .*max_new_tokens: 6 -> 3"):
        ask(rows, [home / "adapters"], out, max_new_tokens=3)
    write_rows(rows, batch()[:3])
    with pytest.raises(CheckpointError, match="contents of the rows"):
        ask(rows, [home / "adapters"], out, **HOW)
    assert ask(rows, [home / "adapters"], out, **HOW, force=True).rows == 3
    with pytest.raises(UsageError, match=r"out\.jsonl exists"):
        ask(rows, [home / "adapters"], out, **HOW)


def test_fifty_adapters_are_loaded_once_and_only_those_that_are_named(home, tmp_path, monkeypatch):
    base = graft.load(home / "model", dtype="fp32")
    save_adapters(base, tmp_path, {f"rank{r}": LoRA(r=r) for r in (1, 2, 3)})
    for number in range(52):
        shutil.copytree(tmp_path / f"rank{1 + number % 3}", tmp_path / "adapters" / f"user{number:02d}")
    loaded, load = [], Base.load_adapter
    monkeypatch.setattr(
        Base, "load_adapter", lambda base, folder, name: loaded.append(name) or load(base, folder, name)
    )
    given = [{"prompt": f"Day {at}. ", "adapter": f"user{at % 50:02d}"} for at in range(100)]
    rows = write_rows(tmp_path / "rows.jsonl", given)
    report = ask(rows, [tmp_path / "adapters"], tmp_path / "out.jsonl", max_new_tokens=2)
    assert sorted(loaded) == [f"user{number:02d}" for number in range(50)]
    wanted = sum(
        tensor.nbytes
        for number in range(50)
        for tensor in load_file(tmp_path / f"rank{1 + number % 3}/adapter_model.safetensors").values()
    )
    assert report.adapters == 50 and report.adapter_bytes == wanted
    assert report.by_adapter == {f"user{number:02d}": 2 for number in range(50)}
