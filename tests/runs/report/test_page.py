"""The page of a run says what its files say, in words and on less than a megabyte, whatever is missing."""

import json
import re
from html import unescape

import pytest
from report_folder import WORDS, write_lines, write_run

from graft import storage
from graft.recipe import read
from graft.runs.report.page import report
from graft.runs.report.settings import changed


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "shop")


def shown(page):
    """Return the text of a page without its styles and scripts, blanks made one."""
    page = re.sub(r"<(style|script|template)\b.*?</\1>", " ", page, flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", page)).split())


def tiles(page):
    """Return {name: (value, more)} of the tiles."""
    found = re.findall(
        r'<dt>([^<]*)</dt><dd class="big">([^<]*)</dd>(?:<dd class="more">([^<]*)</dd>)?', page
    )
    return {name: (value, more) for name, value, more in found}


def test_the_top_says_what_was_trained_on_what(run):
    lead = shown(report(run))
    assert (
        "LoRA (r 4) on seedling, supervised fine-tuning (sft) with 18 rows of rows.jsonl: "
        "2 epochs, 12 steps of 8 rows. 50.0 k parameters were trained beside 2.00 M (2.5 %)."
    ) in lead


def test_the_scores_stand_on_top_with_their_change(run):
    page = shown(report(run))
    assert "perplexity on 6 held-out rows of 7 100 → 4 −96.0 %" in page
    assert (
        "perplexity between how many tokens the model wavers at each token; 1 is certainty 100 4 −96.0 %"
        in page
    )


def test_what_is_neither_good_nor_bad_does_not_stand_on_top(tmp_path):
    run = write_run(tmp_path / "run")
    scores = {"loss": -0.5, "reward": 0.5, "length": 12.0}
    record = {"columns": {"before": scores, "after": scores | {"reward": 0.25}}, "coverage": {}}
    storage.write_record(run / "evaluation.json", record)
    assert re.findall(r'<p class="name">(\w+)', report(run)) == ["reward"]
    assert '<span class="badge bad">−0.25</span>' in report(run)


def test_the_tiles_are_the_figures_of_the_files(run):
    found = tiles(report(run))
    assert found["Training time"][0] == "60 s", "from the start to the end, evaluations included"
    assert found["Training time"][1] == f"{sum(200.0 * i for i in range(1, 13)) / 24:,.0f} tok/s"
    assert found["Peak memory"] == ("0.11 GiB", "of the process")
    assert found["Parameters trained"] == ("50.0 k", "2.5 % of 2.00 M")
    assert found["Adapter"] == ("2.0 KiB", "in adapter/")
    assert found["Rows"] == ("18", "6 held out") and found["Steps"] == ("12", "of 8 rows")
    assert found["Number format"] == ("bf16", "base stored as nf4")


def test_it_says_when_with_what_and_where_and_how_to_use_it(run, monkeypatch):
    monkeypatch.chdir(run.parent)
    page = shown(report(run))
    assert "Begun 30 November 2026, 06:11 UTC Ended 30 November 2026, 06:12 UTC" in page
    assert "python 3.11.9, graft 0.1.0, torch 2.8.0, transformers 5.20.0" in page
    assert "A Processor; 4 cores, 2 threads; Linux x86_64" in page and "0 for training" in page
    for command in ("graft chat shop", "graft eval shop --data ROWS", "graft export shop OUT"):
        assert command in page
    assert "data.max_length is 64 here" in page and "the loss rose" in page


def test_no_private_path_stands_outside_the_settings(run):
    page = report(run)
    before, _, settings = page.partition('<section id="settings">')
    assert "/home/anna" not in before and str(run.parent) not in before and "/home/anna" in settings


def test_the_data_are_words_and_tables_and_no_json(run):
    page = report(run)
    text = shown(page)
    assert (
        "25 rows were read from rows.jsonl: 18 to learn from, 6 held out, "
        "1 left out because they cannot be used."
    ) in text
    assert (
        "900, 300 of them are learnt (33%)" in text
        and "median 40, 90 % up to 60, 99 % up to 63, longest 64; limit 64" in text
    )
    assert "rows.jsonl:7 empty answer nothing is left write an answer" in text
    assert "not read: column 'id'" in text and "2 rows, first rows.jsonl:3" in text
    assert f'asked <mark class="learnt">{WORDS}</mark>' in page
    outside = re.sub(r"<script.*?</script>|<style.*?</style>", "", page, flags=re.DOTALL)
    assert "histogram" not in outside and "&quot;pieces" not in outside and "altered_turns" not in outside


def test_settings_that_were_changed_come_first_and_the_rest_is_folded(run):
    keys = [key for key, *_ in changed(read(run))]
    assert keys == [
        "quant", "dtype", "method.r", "data.train", "data.eval",
        "train.epochs", "train.batch_size", "train.lr",
    ]  # fmt: skip
    page = report(run)
    assert "<tr><td>method.r</td><td>4</td><td>8</td></tr>" in page
    assert "<details><summary>Every setting, as recipe.yaml</summary><pre" in page


def test_a_long_run_with_long_answers_stays_below_a_megabyte(tmp_path):
    run = write_run(tmp_path / "long", steps=5_000)
    texts = [
        {"prompt": "問" * 9_000, "references": ["語" * 9_000], "before": "b " * 9_000, "after": "a " * 9_000}
    ]
    record = storage.read_record(run / "evaluation.json") | {"texts": texts * 20}
    storage.write_record(run / "evaluation.json", record)
    (run / "samples.md").write_text("## step 1\n\n" + "word " * 50_000)
    page = report(run)
    assert len(page.encode()) < 1_000_000
    small = report(write_run(tmp_path / "short"))
    assert len(small.encode()) < 150_000


@pytest.mark.parametrize(
    ("name", "gap"),
    [
        ("timing.jsonl", "timing.jsonl is missing"),
        ("metrics.jsonl", "metrics.jsonl is missing"),
        ("data_report.json", "data_report.json is missing"),
        ("evaluation.json", "evaluation.json is missing"),
        ("recipe.yaml", "recipe.yaml is missing"),
        ("finished.json", "finished.json is missing"),
    ],
)
def test_a_file_that_is_missing_is_named_on_the_page(run, name, gap):
    (run / name).unlink()
    assert f"Not on this page: {gap}." in shown(report(run))


@pytest.mark.filterwarnings("ignore::graft.errors.Notice")
@pytest.mark.parametrize("name", ["data_report.json", "evaluation.json", "metrics.jsonl", "recipe.yaml"])
@pytest.mark.parametrize("damage", [b"{", bytes(50), b"[1]", b"\xff\xfe{}"])
def test_a_file_that_is_damaged_is_named_on_the_page(run, name, damage):
    (run / name).write_bytes(damage)
    gaps = shown(report(run)).partition("Not on this page:")[2].partition("Use it")[0]
    assert re.search(rf"(lines of )?{name} (is damaged|is not readable|cannot be read)", gaps)


@pytest.mark.filterwarnings("ignore::graft.errors.Notice")
@pytest.mark.parametrize("name", ["data_report.json", "evaluation.json", "recipe.yaml"])
def test_a_file_that_is_empty_is_not_taken_for_one_that_says_nothing(run, name):
    (run / name).write_bytes(b"")
    assert f"{name} is" in shown(report(run)).partition("Not on this page:")[2]


def test_values_of_a_wrong_kind_in_sound_files_do_no_harm(run):
    write_lines(
        run / "metrics.jsonl", [{"step": "two", "loss": [1], "epoch": None}, {"step": 1, "loss": 2.0}]
    )
    write_lines(run / "timing.jsonl", [{"start": 3}, {"start": {"time": 7}}, {"end": {}}, {"seconds": "x"}])
    (run / "data_report.json").write_text(json.dumps({"read": None, "train": "x", "samples": [1, {}]}))
    page = report(run)
    assert "LoRA (r 4) on seedling" in page and "<h2>Curves</h2>" in page


def test_a_run_of_an_older_graft_shows_what_it_has(run):
    lines = [json.loads(line) for line in (run / "timing.jsonl").read_text().splitlines()]
    write_lines(run / "timing.jsonl", [line for line in lines if not {"start", "end"} & set(line)])
    page = report(run)
    found, text = tiles(page), shown(page)
    assert found["Training time"][0] == "24 s", "the sum of the steps"
    assert "Parameters trained" not in found and "Begun" not in text and "Machine" not in text


def test_numbers_stand_in_a_table_for_those_who_see_no_curves(run):
    page = report(run)
    (numbers,) = re.findall(r"<details data-fold open>.*?</details>", page, re.DOTALL)
    assert "<tr><td>loss</td>" in numbers and shown(numbers).count("0.1667") == 2, "lowest and last"


def test_the_classes_of_a_classifier_are_set_against_each_other(tmp_path):
    run = write_run(tmp_path / "classes", stage="classify", method={"name": "lora"})
    counts = [["no", "no", 3], ["no", "yes", 1], ["yes", "yes", 2]]
    columns = {"majority": {"accuracy": 0.5}, "after": {"accuracy": 5 / 6}}
    texts = [{"prompt": "a text", "references": ["yes"], "after": "no"}]
    record = {"columns": columns, "texts": texts, "curves": {"confusion": counts}, "coverage": {}}
    storage.write_record(run / "evaluation.json", record)
    page = report(run)
    assert (
        'class="down" style="--heat:15%" title="1 of 4 rows of no were taken for yes (25.0%)">1</td>' in page
    )
    assert "50.0 % → 83.3 % +33.3 points" in shown(page) and "always the most frequent class" in page
    assert "graft chat" not in page and "✗ wrong" in page


def test_long_names_of_classes_stand_over_no_column(tmp_path):
    run = write_run(tmp_path / "long", stage="classify", method={"name": "lora"})
    counts = [["a rather long name", "b", 3], ["b", "b", 2]]
    record = {"columns": {"after": {"accuracy": 0.4}}, "curves": {"confusion": counts}, "coverage": {}}
    storage.write_record(run / "evaluation.json", record)
    page = report(run)
    assert '<th scope="col">1</th><th scope="col">2</th>' in page
    assert '<th scope="row">1  a rather long name</th><td>·</td>' in page


def test_many_classes_are_a_list_of_the_most_frequent_mistakes(tmp_path):
    run = write_run(tmp_path / "many", stage="classify", method={"name": "lora"})
    counts = [[f"c{i}", f"c{i}", 5] for i in range(30)] + [["c3", "c4", 9], ["c5", "c6", 2]]
    record = {"columns": {"after": {"accuracy": 0.9}}, "curves": {"confusion": counts}, "coverage": {}}
    storage.write_record(run / "evaluation.json", record)
    text = shown(report(run))
    assert "150 of 161 rows are right" in text and text.index("c3 c4 9") < text.index("c5 c6 2")
