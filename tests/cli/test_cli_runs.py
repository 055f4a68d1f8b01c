"""graft runs, compare, sweep and ask: what they print, their files and exit codes; the list of metrics."""

import csv
import json
import re
import shutil
import subprocess
import sys

import pytest
from tiny_folder import rows, write_model, write_rows

from graft.cli import call
from graft.cli.score_tables import side_by_side
from graft.evaluate.metrics import NAMES
from graft.recipe.metric_help import HELP
from graft.recipe.stages import stage_cards

COMMON = "dtype=fp32 train.max_steps=2 train.batch_size=4 data.eval=0.25 train.lr=1e-2 method.r=2"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A model, rows, and a sweep over seeds and rates."""
    folder = tmp_path_factory.mktemp("tables")
    write_model(folder / "model")
    write_rows(folder / "rows.jsonl", rows(16))
    words = ["sweep", "--model", str(folder / "model"), "--data", str(folder / "rows.jsonl")]
    words += ["--method", "lora", "--out", str(folder / "swept"), *COMMON.split()]
    assert call([*words, "train.seed=0,1", "--train.weight_decay", "0.0,0.1"]) == 0
    return folder


def run_of(home, seed, decay):
    return str(home / "swept" / f"seed{seed}-weight_decay{decay}")


def without_torch(words):
    """Run a command in a process of its own; return its output, and fail if it has imported torch."""
    code = f"from graft.cli import call\nimport sys\nassert call({words!r}) == 0\n"
    code += "assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_a_sweep_ends_with_its_table_and_the_same_command_keeps_it(home, capsys):
    words = ["sweep", "--model", str(home / "model"), "--data", str(home / "rows.jsonl"), "--method", "lora"]
    words += ["--out", str(home / "swept"), *COMMON.split(), "train.seed=0,1", "train.weight_decay=0.0,0.1"]
    assert call(words) == 0
    out, err = capsys.readouterr()
    table = [line.split() for line in out.splitlines()]
    assert table[0] == ["run", "weight_decay", "seed", "perplexity"]
    assert table[9] == ["weight_decay", "seeds", "perplexity"], out
    assert [[*line[:2], line[3]] for line in table[10:]] == [["0.0", "2", "±"], ["0.1", "2", "±"]]
    assert err.count("\ndata    ") == 1, "the rows are the same, and shown once"
    assert err.count("kept    ") == 4 and "run     4 of 4" in err and "nothing is left to train" in err
    assert "plan    the largest is " in err and "scored on 4 held-out rows, the same for all" in out
    assert err.splitlines()[-1].startswith("next    graft chat ")


def test_a_sweep_is_listed_before_it_is_carried_out(home, capsys, tmp_path):
    words = [
        "sweep",
        "--model",
        str(home / "model"),
        "--data",
        str(home / "rows.jsonl"),
        "--out",
        str(tmp_path / "o"),
    ]
    assert call([*words, "--method", "lora,ia3", "train.seed=0,1", "--dry-run"]) == 0
    assert capsys.readouterr().out.split() == ["lora-seed0", "lora-seed1", "ia3-seed0", "ia3-seed1"]
    assert not (tmp_path / "o").exists()


def test_a_sweep_with_a_run_that_fails_exits_with_one_and_names_it(home, capsys, tmp_path):
    words = ["sweep", "--model", str(home / "model"), "--method", "ia3", "--out", str(tmp_path / "o")]
    words += ["dtype=fp32", "train.max_steps=1", "data.eval=0.25"]
    assert call([*words, f"data.train={home / 'rows.jsonl'},{home / 'none.jsonl'}", "--json"]) == 1
    out, err = capsys.readouterr()
    facts = json.loads(out)
    assert len(facts["results"]) == 1 and len(facts["failed"]) == 1
    assert (
        "failed  " in err and "none.jsonl" in err and err.splitlines()[-1].startswith("next    graft train ")
    )


def test_many_runs_are_compared_from_their_records_without_torch(home, tmp_path):
    out, err = without_torch(["compare", str(home / "swept"), "--csv", str(tmp_path / "t.csv")])
    lines = [line.split() for line in out.splitlines()]
    assert lines[1][:2] == ["before", "training"] and sum(str(home) in line[0] for line in lines if line) == 4
    assert len(re.findall(r"\d ± \d", out)) == 2 and "warning" not in err
    with (tmp_path / "t.csv").open() as file:
        written = list(csv.DictReader(file))
    assert [row["n"] for row in written] == ["1"] * 4 + ["2"] * 2
    facts = json.loads(without_torch(["compare", str(home / "swept"), "--json"])[0])
    for row, run in zip(written, facts["runs"], strict=False):
        assert float(row["perplexity"]) == run["after"]["perplexity"] and row["run"] == run["run"]
    two = [run_of(home, 0, "0.0"), run_of(home, 1, "0.0")]
    assert "±" in without_torch(["compare", *two, "--scores"])[0]


def test_two_runs_are_asked_as_well_and_three_only_if_a_prompt_is_given(home, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    two = [run_of(home, 0, "0.0"), run_of(home, 1, "0.0")]
    assert call(["compare", *two, "--limit", "1", "--max-new-tokens", "4"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n> ") == 1 and all(f"\n{name}:\n  " in out for name in two) and "± " in out
    three = [*two, run_of(home, 0, "0.1")]
    assert call(["compare", *three, "--prompt", "Day 1. ", "--max-new-tokens", "4"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n> Day 1.") == 1 and all(f"\n{name}:\n  " in out for name in three)


def test_runs_are_scored_on_other_rows(home, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("GRAFT_DTYPE", "fp32")  # of the model; the runs say their own
    data = write_rows(tmp_path / "other.jsonl", rows(20)[16:])
    words = [
        "compare",
        run_of(home, 0, "0.0"),
        run_of(home, 1, "0.0"),
        str(home / "model"),
        "--data",
        str(data),
    ]
    assert call([*words, "--metric", "loss", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [list(run["after"]) for run in facts["runs"]] == [["loss"]] * 3 and facts["groups"][0]["n"] == 2
    assert {run["scored"] for run in facts["runs"]} == {4} and facts["warnings"] == []
    before = facts["runs"][0]["before"]["loss"]
    assert before == pytest.approx(facts["runs"][2]["after"]["loss"], rel=1e-4), "the model is the bare base"


@pytest.mark.parametrize(
    "line",
    [
        "compare RUN",
        "compare MODEL MODEL MODEL",
        "compare RUN RUN --metric loss",
        "compare RUN RUN --scores --prompt Day",
        "runs ./nowhere",
        "runs MODEL",
        "sweep",
        "sweep --model MODEL --data ROWS",
        "sweep --model MODEL --data ROWS train.sed=0,1",
        "sweep --model MODEL --data ROWS output=a,b",
        "sweep --model MODEL --data ROWS 'train.seed=[0,1'",
        "ask ROWS --adapters ./nowhere",
        "ask none.jsonl --adapters RUN",
        "ask ROWS --adapters RUN --adapter nobody",
        "ask ROWS --adapters RUN --top-p 2",
    ],
)
def test_bad_input_ends_in_three_lines(line, home, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    named = {"RUN": run_of(home, 0, "0.0"), "MODEL": str(home / "model"), "ROWS": str(home / "rows.jsonl")}
    code = call([named.get(word, word) for word in line.split()])
    err = capsys.readouterr().err
    assert code in (1, 2) and all(part in err for part in ("graft: error:", "expected:", "to do:")), err
    assert [*tmp_path.iterdir()] == []


def test_runs_are_listed_the_newest_first_without_torch(home, tmp_path):
    shutil.copytree(home / "swept", tmp_path / "all/swept")
    broken = tmp_path / "all/swept/seed0-weight_decay0.0"
    (broken / "recipe.yaml").write_text("method: [")
    out, err = without_torch(["runs", str(tmp_path / "all"), "--csv", str(tmp_path / "r.csv")])
    header, *lines = out.splitlines()
    assert header.split() == ["run", "base", "method", "stage", "state", "loss", "score", "age", "size"]
    assert len(lines) == 4 and sum("damaged" in line for line in lines) == 1
    assert sum("model   lora" in line and "finished" in line and "perplexity" in line for line in lines) == 3
    assert f"{broken}: recipe.yaml cannot be read" in err and err.splitlines()[-1].startswith(
        "next    graft "
    )
    facts = json.loads(without_torch(["runs", str(tmp_path / "all"), "--json"])[0])
    times = [one["changed"] for one in facts]
    assert times == sorted(times, reverse=True)
    with (tmp_path / "r.csv").open() as file:
        assert [row["run"] for row in csv.DictReader(file)] == [one["run"] for one in facts]


def test_a_batch_is_asked_with_a_count_and_names_what_it_could_not_ask(home, tmp_path, capsys):
    names = ["seed0-weight_decay0.0", "seed1-weight_decay0.1", ""]
    given = [{"prompt": row["prompt"], "adapter": names[at % 3]} for at, row in enumerate(rows(9))]
    path = write_rows(tmp_path / "rows.jsonl", given)
    out = tmp_path / "out.jsonl"
    words = ["ask", str(path), "--adapters", str(home / "swept"), "--out", str(out), "--max-new-tokens", "4"]
    assert call(words) == 0
    shown, err = capsys.readouterr()
    assert [line.split() for line in shown.splitlines()[1:]] == [
        ["(base)", "3"],
        [names[0], "3"],
        [names[1], "3"],
    ]
    assert (
        "asked   9 of 9" in err
        and "2 adapters" in err
        and err.splitlines()[-1].startswith("next    graft judge")
    )
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    assert [answer["prompt"] for answer in answers] == [row["prompt"] for row in given]
    assert call(words) == 2 and "exists" in capsys.readouterr().err
    write_rows(path, [*given, {"prompt": "x", "adapter": "seed0"}])
    assert call([*words, "--force", "--json"]) == 1
    shown, err = capsys.readouterr()
    facts = json.loads(shown)
    assert facts["rows"] == 10 and facts["by_adapter"] == {names[0]: 3, names[1]: 3, "": 3}
    assert f"error   {path}:10: there is no adapter 'seed0' (of 4); did you mean 'seed0-weight_decay0" in err


def test_the_list_of_metrics_explains_each_that_is_known(capsys):
    known = {*NAMES, *(name for card in stage_cards().values() for name in card.metrics)}
    assert set(HELP) == known
    assert call(["eval", "--metrics-list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == list(HELP) and "module:function" in lines[-1]


def test_an_unknown_metric_is_told_where_the_list_is(home, capsys):
    assert call(["eval", run_of(home, 0, "0.0"), "--metric", "blue"]) == 2
    err = capsys.readouterr().err
    assert "did you mean 'bleu'?" in err and "graft eval --metrics-list" in err


def test_answers_stand_below_each_other_where_the_terminal_is_narrow():
    texts = {"one": "a " * 40, "two": "b"}
    wide = side_by_side(texts, 120).splitlines()
    assert wide[0].split() == ["one", "two"] and wide[2].endswith("b") and max(map(len, wide)) <= 120
    narrow = side_by_side(texts, 80).splitlines()
    assert narrow[0] == "one:" and narrow[-2:] == ["two:", "  b"] and max(map(len, narrow)) <= 80
    assert side_by_side({"x" * 200: "a", "b": ""}, 100).splitlines()[0].startswith("…")
