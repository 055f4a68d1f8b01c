"""The benchmark of preference tuning: its rows in folds, its errors of means, its ratios, its pages."""

import json
import math
import re
import statistics
import subprocess
import sys
from xml.etree import ElementTree

import pytest
from scripts import BENCHMARKS, imported

MODULES = ("material", "columns", "picture", "sums", "grid")


@pytest.fixture(scope="module")
def bench():
    with imported(("preference", "common"), MODULES) as modules:
        yield modules


class Words:
    """A tokenizer whose tokens are words with the blank before them; a bracket joins the colon before it."""

    def __call__(self, text, **how):
        return {"input_ids": re.findall(r"\s*\S+", text.replace(": (", ":("))}


def dialogue(*turns):
    return "".join(f"\n\n{('Human', 'Assistant')[k % 2]}: {text}" for k, text in enumerate(turns))


def test_the_oldest_turns_are_left_out_until_a_dialogue_fits(bench):
    row = {"chosen": dialogue("a b c", "d", "e f", "yes"), "rejected": dialogue("a b c", "d", "e f", "no no")}
    turns, answers, group = bench.material._harmless(row)
    assert turns == ["Human: a b c\n\nAssistant: d", "Human: e f\n\nAssistant:"]
    assert answers == (" yes", " no no") and group == dialogue("a b c", "d", "e f") + "\n\nAssistant:"
    fitting = bench.material._fitting
    whole = fitting(turns, answers, group, Words(), 100)
    assert whole.prompt == "Human: a b c\n\nAssistant: d\n\nHuman: e f\n\nAssistant:"
    assert fitting(turns, answers, group, Words(), 10).prompt == "Human: e f\n\nAssistant:"
    assert fitting(turns, answers, group, Words(), 5) == "longer than 5 tokens"
    assert fitting(turns, (" yes", ""), group, Words(), 100) == "an empty answer"
    assert fitting(turns, (" yes", " yes "), group, Words(), 100) == "both answers the same"
    assert "across" in fitting(turns, (" (a", " b"), group, Words(), 100)


def test_a_conversation_of_ranked_answers_becomes_the_same_text(bench):
    prompt = [("user", "why"), ("assistant", "so"), ("user", "how")]
    messages = [{"role": role, "content": content} for role, content in prompt]
    row = {"prompt": messages, "chosen": "yes", "rejected": "no", "tree": 7}
    turns, answers, group = bench.material._ranked(row)
    assert turns == ["Human: why\n\nAssistant: so", "Human: how\n\nAssistant:"]
    assert (answers, group) == ((" yes", " no"), "tree 7")


def test_folds_divide_no_group_and_lose_no_pair(bench):
    pairs = [bench.material.Pair(f"p{k}", "a", "b", f"g{k // 4}") for k in range(60)]
    folds = bench.material.folds(pairs)
    groups = [{pair.group for pair in fold} for fold in folds]
    assert sorted(pair.prompt for fold in folds for pair in fold) == sorted(pair.prompt for pair in pairs)
    assert all(not one & other for k, one in enumerate(groups) for other in groups[:k])
    assert {len(own) for own in groups} == {5}


def test_the_error_of_pairs_that_hang_together_is_that_of_their_means(bench):
    """With groups of equal size it is the deviation of their means, over the root of their number."""
    values = [1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0]
    groups = ["a", "a", "b", "b", "c", "c", "d", "d"]
    means = [statistics.mean(values[k : k + 2]) for k in range(0, 8, 2)]
    wanted = statistics.pstdev(means) / math.sqrt(4)
    assert bench.columns.standard_error(values, groups) == pytest.approx(wanted)


def steps(others, reference_s=10.0):
    """Steps in turns: two of each side in every round, Graft's of 1 s, TRL's of 3 s."""
    sides = {
        "graft": {"seconds": [1.0, 1.0], "losses": [0.5, 0.4]},
        "trl": {"seconds": [3.0, 3.0], "losses": [0.5, 0.3]},
    }
    ready = {"losses": [0.7], "trained": 9}
    return {
        "cell": {
            "part": "step dpo", "data": "hh", "seed": 0, "steps": 9, "batch_size": 8, "lr": 1e-3,
            "context": 192, "train": 160,
        },
        "ready": {"graft": ready | {"reference_s": reference_s}, "trl": ready},
        "rounds": [{"others": cores, "turns": sides} for cores in others],
        "ended": {tool: {"peak_mib": 50.0} for tool in sides}, "quiet": 0, "wanted": 2, "turn": 2,
        "tokens": [100] * 9, "wall_s": 1.0, "load": [0.0, 0.0],
        "machine": {"threads": 1, "date": "2026-01-01"},
    }  # fmt: skip


@pytest.fixture
def rows_of(bench, monkeypatch):
    monkeypatch.setattr("results.machine_name", lambda facts: "A")
    return lambda raw: list(bench.columns.rows(raw))


def test_the_reference_is_shared_by_the_steps_of_an_epoch(rows_of):
    """10 s for 160 pairs are half a second for each of 20 steps: 3 s against 1.5 s."""
    graft, trl = rows_of(steps([0.1, 0.2, 0.9]))
    assert (graft["step_ms"], graft["reference_ms"]) == (1500.0, 500.0)
    assert trl["step_ms"] == 3000.0 and trl["ratio"] == trl["ratio_low"] == trl["ratio_high"] == 2.0
    assert graft["tokens_per_s"] == pytest.approx(100 / 1.5) and trl["tokens_per_s"] == pytest.approx(100 / 3)
    assert trl["gap"] == pytest.approx(0.1) and "ratio" not in graft


def test_steps_beside_other_work_have_losses_but_no_speeds(rows_of):
    for row in rows_of(steps([0.1, 0.9, 0.9])):
        assert not {"step_ms", "tokens_per_s", "ratio"} & set(row)
        assert row["peak_mib"] == 50.0 and row["first_loss"] == 0.7


def test_every_kind_of_raw_run_has_rows_with_known_columns(bench, rows_of):
    side = {"losses": [0.7, 0.6], "margins": [0.1, -0.1, 0.2], "step_seconds": [1.0, 1.0]}
    about = {key: steps([])[key] for key in ("wall_s", "load", "machine")}
    numbers = {"seed": 0, "steps": 2, "batch_size": 8, "lr": 1e-3, "context": 192, "train": 100}
    cell = numbers | {"part": "reward", "data": "hh", "read": 9, "left_out": {"x": 2, "y": 1}, "test": 3}
    whole = {"graft": side, "trl": side, "groups": ["a", "a", "b"], "longer_wins": 0.4, "cell": cell}
    at = {
        "reward": 1.0,
        "kl": 0.1,
        "length": 4.0,
        "ended": 1.0,
        "entropy": 2.0,
        "rollout_s": 1.0,
        "update_s": 2.0,
    }
    own = {
        "cell": numbers | {"part": "grpo", "data": "sums", "prompts": 16, "group": 8},
        "before": {"right": 0.3, "answers": 10}, "after": {"right": 0.6, "answers": 10}, "curve": [at, at],
    }  # fmt: skip
    peaks = {"cell": numbers | {"data": "random"}, "stages": {"sft": {"peak_mib": 9.0, "idle_mib": 1.0}}}
    known = {*bench.columns.RESULTS.key, *bench.columns.RESULTS.facts}
    found = [row for raw in (whole, own, peaks) for row in rows_of(raw | about)] + rows_of(steps([0.1, 0.1]))
    assert len(found) == 6 and all(set(row) <= known for row in found)
    first = found[0]
    assert (first["left_out"], first["pairs"], first["groups"]) == (3, 3, 2)
    assert first["accuracy"] == pytest.approx(200 / 3) and first["longer_wins"] == 40
    iterations = list(bench.columns.curves(own | about))
    assert [row["iteration"] for row in iterations] == [1, 2] and not list(
        bench.columns.curves(whole | about)
    )
    svg = bench.picture.svg(iterations)
    assert len([e for e in ElementTree.fromstring(svg).iter() if e.tag.endswith("polyline")]) == 2


def test_sums_of_the_test_are_not_learnt_and_only_the_number_is_paid(bench, tmp_path):
    bench.sums.write(tmp_path)
    rows = {
        name: [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for name in ("answers", "prompts", "asked")
    }
    asked, prompts, learnt = (
        {row["prompt"] for row in rows[name]} for name in ("asked", "prompts", "answers")
    )
    assert (len(asked), len(learnt)) == (bench.sums.HELD_OUT, bench.sums.EXAMPLES)
    assert len(asked | prompts | learnt) == len(asked) + len(prompts) + len(learnt) == bench.sums.LIMIT**2
    totals = [eval(row["prompt"].rstrip("= ")) for row in rows["answers"]]
    assert bench.sums.right([row["completion"] for row in rows["answers"]], totals) == [1.0] * len(totals)
    assert all(eval(row["prompt"].rstrip("= ")) == row["total"] for row in rows["asked"] + rows["prompts"])
    assert bench.sums.right([" 19 .", "", "twenty", " 020"], [19, 0, 20, 20]) == [0.0] * 4


def test_every_run_has_a_name_of_its_own_and_whole_iterations(bench):
    cells = list(bench.grid.cells({}))
    assert len({cell.name for cell in cells}) == len(cells) == 18
    for cell in cells:
        assert isinstance(cell, bench.grid.OwnCell) or not bench.material.WHOLE % cell.setting.batch_size
        if isinstance(cell, bench.grid.OwnCell):
            settings, asked = cell.setting.settings, cell.setting.steps * cell.setting.batch_size
            assert asked % (settings["prompts"] * settings["epochs"]) == 0


def test_runs_are_listed_without_a_model(tmp_path):
    words = [sys.executable, BENCHMARKS / "preference" / "run.py", "--list", "--only", "reward"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 6
