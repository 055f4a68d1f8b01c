"""Runs side by side: what differs, means over seeds, CSV. Oracle of the numbers: scipy."""

import csv
import io
import math

import pytest
from scipy import stats

from graft.runs.records import RunRecord
from graft.runs.table import best, comparison, differing, line_of

SCORES = {("lora", 1e-3): (3.1, 3.4, 2.9), ("lora", 1e-2): (5.0, 4.0), ("ia3", 1e-3): (6.25,)}


def record(folder, method, lr, seed, score, rows="x", before=9.0):
    settings = {"model": "m", "method": method, "train.lr": lr, "train.seed": seed}
    identity = {**settings, "path of the base": f"/{folder}/m", "fingerprint of the base": "f"}
    scores = {"perplexity": score, "bleu": 10 * score}
    return RunRecord(
        folder, "finished", before={"perplexity": before}, after=scores, rows=rows, scored=12,
        settings=settings, identity=identity,
    )  # fmt: skip


@pytest.fixture
def table():
    lines = [
        line_of(f"{method}-{lr}-{seed}", record(f"{seed}", method, lr, seed, score))
        for (method, lr), scores in SCORES.items()
        for seed, score in enumerate(scores)
    ]
    return comparison(lines)


def test_runs_that_differ_in_their_seed_alone_are_averaged(table):
    assert table.columns == ["method", "train.lr", "train.seed"] and table.warnings == []
    assert [group.n for group in table.groups] == [3, 2, 1]
    for group, values in zip(table.groups, SCORES.values(), strict=True):
        assert group.mean["perplexity"] == pytest.approx(sum(values) / len(values))
        assert group.mean["bleu"] == pytest.approx(stats.tmean([10 * value for value in values]))
        if len(values) > 1:
            assert group.deviation["perplexity"] == pytest.approx(stats.tstd(values))
    assert not table.groups[2].deviation, "one run has no deviation"
    by_hand = math.sqrt(((3.1 - 9.4 / 3) ** 2 + (3.4 - 9.4 / 3) ** 2 + (2.9 - 9.4 / 3) ** 2) / 2)
    assert table.groups[0].deviation["perplexity"] == pytest.approx(by_hand)


def test_the_csv_holds_every_run_and_every_mean(table):
    rows = list(csv.DictReader(io.StringIO(table.csv())))
    assert len(rows) == 6 + 2
    runs, means = rows[:6], rows[6:]
    assert [float(row["perplexity"]) for row in runs] == [v for values in SCORES.values() for v in values]
    assert runs[5]["method"] == "ia3" and runs[5]["train.lr"] == "0.001" and runs[5]["train.seed"] == "0"
    assert all(row["perplexity before"] == "9.0" and row["perplexity deviation"] == "" for row in runs)
    assert [row["n"] for row in means] == ["3", "2"] and means[0]["train.seed"] == ""
    assert float(means[0]["perplexity deviation"]) == pytest.approx(stats.tstd(SCORES["lora", 1e-3]))


def test_a_group_has_the_metrics_that_all_its_runs_have():
    lines = [line_of(str(seed), record("r", "lora", 1.0, seed, 2.0 + seed)) for seed in range(2)]
    del lines[1].after["bleu"]
    assert set(comparison(lines).groups[0].mean) == {"perplexity"}


def test_runs_of_other_rows_are_not_averaged_and_told():
    lines = [line_of(str(seed), record("r", "lora", 1.0, seed, 2.0, rows="xy"[seed])) for seed in range(2)]
    table = comparison(lines)
    assert (
        table.repeated == [] and "the held-out rows differ (0: 12 rows and 1: 12 rows)" in table.warnings[0]
    )


def test_runs_of_another_base_are_not_averaged_though_its_path_is_the_same():
    one, two = record("r", "lora", 1.0, 0, 2.0), record("r", "lora", 1.0, 1, 2.0)
    two.identity["fingerprint of the base"] = "g"
    assert comparison([line_of("a", one), line_of("b", two)]).repeated == []
    two.identity["fingerprint of the base"] = "f"
    two.identity["path of the base"] = "/moved/m"
    assert comparison([line_of("a", one), line_of("b", two)]).repeated[0].n == 2


def test_another_start_is_told_with_the_runs_that_have_it():
    befores = (9.0, 9.0001, 7.5)
    lines = [line_of(f"r{at}", record("r", "lora", 1.0, at, 2.0, before=b)) for at, b in enumerate(befores)]
    (warning,) = comparison(lines).warnings
    assert "r0 and r2: perplexity 9 and 7.5" in warning and "r1" not in warning


def test_settings_of_a_method_differ_only_within_the_method():
    lora, other = {"method": "lora", "method.r": 8}, {"method": "lora", "method.r": 16}
    ia3 = {"method": "ia3", "method.r": 1, "method.init": True, "train.lr": 1.0}
    assert differing([lora, ia3]) == ["method", "train.lr"]
    assert differing([lora, other, ia3]) == ["method", "method.r", "train.lr"]
    assert differing([lora, lora]) == []


def test_the_best_run_is_that_of_the_lowest_perplexity_or_of_the_highest_score(table):
    assert best(table) == "lora-0.001-2"
    lines = [line_of(str(score), record("r", "lora", 1.0, 0, score)) for score in (1.0, 2.0)]
    for line in lines:
        del line.after["perplexity"]
    assert best(comparison(lines)) == "2.0" and best(comparison([])) is None
