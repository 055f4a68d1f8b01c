"""Scores say which rows they are about: counted, sampled, or named where a metric cannot use them."""

from collections import Counter

import pytest
from tiny_folder import CONFIG, rows, write_model, write_rows

import graft
from graft import storage
from graft.errors import DataError, UsageError
from graft.runs.open import Opened, open_model
from graft.runs.run import run
from graft.runs.score import chosen_rows, evaluation_set, score, scoring_recipe
from graft.runs.table import recorded as table_of

POSITIONS = CONFIG["max_position_embeddings"]
LONG = "The cat wants a ball. " * 60  # more tokens than the model has positions


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("score")
    write_model(folder / "model")
    write_rows(folder / "rows.jsonl")
    classes = [{"text": f"The {name} ran {i}.", "label": name} for name in ("cat", "dog") for i in range(12)]
    write_rows(folder / "classes.jsonl", classes)
    return folder


@pytest.fixture(scope="module")
def classifier(home):
    settings = {
        "model": str(home / "model"),
        "dtype": "fp32",
        "stage": "classify",
        "method": {"name": "lora", "r": 2},
        "data": {"train": str(home / "classes.jsonl"), "eval": 0.25},
        "train": {"max_steps": 1, "batch_size": 4},
        "output": str(home / "classifier"),
    }
    return open_model(str(run(settings).folder))


@pytest.fixture(scope="module")
def writer(home):
    return Opened(graft.load(home / "model", dtype="fp32"))


def scored(opened, where, *metrics, stage=None, limit=None, **changes):
    recipe = scoring_recipe(opened, stage, metrics, limit)
    for key, value in changes.items():
        section = getattr(recipe, key).model_copy(update=value)
        recipe = recipe.model_copy(update={key: section})
    return score(opened, recipe, str(where))


def test_a_class_that_the_head_does_not_know_is_an_error(classifier, home):
    known = [{"text": f"The cat ran {i}.", "label": "cat"} for i in range(3)]
    unknown = [{"text": f"The {name} ran.", "label": name} for name in ("cow", "hen", "pig")]
    mixed, alone = (
        write_rows(home / f"{n}.jsonl", r) for n, r in (("mixed", known + unknown), ("alone", known))
    )
    of_known = scored(classifier, alone, "accuracy").columns["after"]["accuracy"]
    table = scored(classifier, mixed, "accuracy", "f1", "loss")
    assert table.columns["after"]["accuracy"] == pytest.approx(of_known * 3 / 6)
    assert table.columns["after"]["loss"] == pytest.approx(
        scored(classifier, alone, "loss").columns["after"]["loss"]
    )
    lines = table.coverage.lines()
    assert lines[0] == "scored 6 of 6 rows"
    assert "3 rows of classes unknown to the head (cow, hen, pig)" in lines[1]
    assert "mixed.jsonl:4" in lines[1] and "the loss is that of the other rows" in lines[1]


def test_the_f1_counts_what_was_predicted_for_unknown_classes(classifier, home):
    """By hand: every row predicted as one known class c; true: 2 of c, 2 unknown. F1 of c is 2*2/(4+2)."""
    texts = [{"text": "The cat ran 1.", "label": "cat"}]
    answer = classifier.ask(["The cat ran 1."])[0]
    data = write_rows(
        home / "f1.jsonl",
        [*({**texts[0], "label": answer} for _ in "ab"), *({**texts[0], "label": "x"} for _ in "ab")],
    )
    table = scored(classifier, data, "f1", "precision")
    # x was never predicted: its F1 and precision are 0; the mean is over both classes.
    assert table.columns["after"] == {
        "f1": pytest.approx((4 / 6 + 0) / 2),
        "precision": pytest.approx((2 / 4) / 2),
    }


def test_rows_of_unknown_classes_only_are_all_wrong(classifier, home):
    data = write_rows(
        home / "oos.jsonl", [{"text": "A hen.", "label": "hen"}, {"text": "A pig.", "label": "pig"}]
    )
    table = scored(classifier, data, "accuracy")
    assert table.columns["after"]["accuracy"] == 0 and table.coverage.scored == 2


def test_tags_that_the_head_does_not_know_are_errors_too(home):
    def tagged(*pairs):
        return {"tokens": [word for word, _ in pairs], "tags": [tag for _, tag in pairs]}

    pets = [tagged(("the", "O"), ("cat", "B-PET")), tagged(("a", "O"), ("dog", "B-PET"))] * 6
    settings = {
        "model": str(home / "model"), "dtype": "fp32", "method": {"name": "lora", "r": 2},
        "stage": "classify",
        "data": {"train": str(write_rows(home / "pets.jsonl", pets)), "eval": 0.25},
        "train": {"max_steps": 1, "batch_size": 4}, "output": str(home / "pets"),
    }  # fmt: skip
    opened = open_model(str(run(settings).folder))
    data = write_rows(home / "toys.jsonl", [tagged(("the", "O"), ("ball", "B-TOY")), pets[0]])
    table = scored(opened, data, "accuracy", "f1")
    assert table.coverage.scored == 2 and 0 <= table.columns["after"]["accuracy"] <= 0.75
    assert "(B-TOY)" in table.coverage.lines()[1]


def test_rows_whose_answer_is_cut_away_are_named_beside_the_perplexity(writer, home):
    given = [row if i % 2 else {**row, "prompt": LONG} for i, row in enumerate(rows(8))]
    table = scored(writer, write_rows(home / "long.jsonl", given), "perplexity")
    short = write_rows(home / "short.jsonl", given[1::2])
    assert table.columns["model"] == pytest.approx(scored(writer, short, "perplexity").columns["model"])
    head, left = table.coverage.lines()[:2]
    assert head == "scored 4 of 8 rows"
    assert left.startswith("left out: 4 x cut away (") and "long.jsonl:1" in left and "long.jsonl:3" in left
    facts = table.coverage.json()
    assert (facts["scored"], facts["of"], facts["left_out"]) == (4, 8, {"cut away": 4})


def test_a_run_asks_prompts_with_completions_as_it_learnt_them(writer, home):
    """Its first row was a conversation, so one chats with it; but its prompts passed through no template."""
    data = str(home / "rows.jsonl")
    plain = scoring_recipe(writer, None, ["exact_match"], None)
    named = plain.model_copy(update={"data": plain.data.model_copy(update={"template": "plain"})})
    for recipe, kind in ((plain, "pair"), (named, "chat")):
        opened = Opened(writer.base, None, recipe, home, by_template=True)
        held, _ = evaluation_set(opened, recipe, chosen_rows(recipe, data))
        assert {row.kind for row in held.rows} == {kind}


def test_prompts_that_are_too_long_are_named_and_all_metrics_are_of_the_same_rows(writer, home):
    given = [{**row, "prompt": LONG} if i == 2 else row for i, row in enumerate(rows(4))]
    data = write_rows(home / "prompts.jsonl", given)
    table = scored(writer, data, "exact_match", evaluate={"max_new_tokens": 2})
    assert table.coverage.lines()[0] == "scored 3 of 4 rows"
    (reject,) = table.coverage.left_out
    assert reject.source.endswith("prompts.jsonl:3") and reject.reason == "prompt too long"
    both = scored(writer, data, "exact_match", "perplexity", evaluate={"max_new_tokens": 2})
    assert (both.coverage.scored, both.coverage.fingerprint) == (3, table.coverage.fingerprint)


def test_when_no_row_can_be_scored_the_places_are_told(writer, home):
    data = write_rows(home / "all.jsonl", [{"prompt": LONG, "completion": "x"}])
    with pytest.raises(DataError, match=r"scored 0 of 1 row; left out: 1 x cut away \(.*all\.jsonl:1"):
        scored(writer, data, "perplexity")


def test_rows_that_cannot_be_read_are_counted_where_they_may_be_skipped(writer, home):
    path = write_rows(home / "bad.jsonl", rows(3))
    path.write_text(path.read_text() + '{"prompt": "x", "completion": ""}\n')
    table = scored(writer, path, "perplexity", data={"bad_rows": "skip"})
    assert table.coverage.lines()[0] == "scored 3 of 4 rows"
    assert "bad.jsonl:4" in table.coverage.lines()[1]


def test_texts_that_are_cut_are_counted(writer, home):
    data = write_rows(home / "cut.jsonl", [{"prompt": "Say", "completion": LONG}, rows(1)[0]])
    table = scored(writer, data, "perplexity")
    assert table.coverage.scored == 2
    assert any(
        "1 row cut to 128 tokens, and scored without the rest" in line and "cut.jsonl:1" in line
        for line in table.coverage.lines()
    )


def test_a_limit_is_a_stratified_sample_and_is_told(classifier, home):
    many = [
        {"text": f"The {name} ran {i}.", "label": name} for name in ("cat", "dog", "hen") for i in range(30)
    ]
    data = write_rows(home / "sorted.jsonl", many)
    table = scored(classifier, data, "accuracy", limit=9)
    assert table.coverage.lines()[:2] == [
        "scored 9 of 90 rows",
        "limit: 9 of 90 rows, sampled by seed 0; 3 of 3 classes are in them",
    ]
    recipe = scoring_recipe(classifier, None, ["accuracy"], 9)
    taken = chosen_rows(recipe, str(data)).rows
    assert Counter(row.value[1] for row in taken) == {"cat": 3, "dog": 3, "hen": 3}
    assert taken == chosen_rows(recipe, str(data)).rows


@pytest.mark.parametrize("metric", ["bleu", "perplexity", "graft.evaluate.metrics:exact_match"])
def test_a_metric_that_classes_do_not_have_is_refused(classifier, home, metric):
    with pytest.raises(UsageError, match="accuracy, precision, recall, f1"):
        scored(classifier, home / "classes.jsonl", metric)


def test_a_score_of_classes_is_refused_where_rows_have_none(writer, home):
    with pytest.raises(UsageError, match=r"evaluate\.metrics=accuracy for stage sft"):
        scored(writer, home / "rows.jsonl", "accuracy")


def test_a_bare_base_has_no_classes(writer, home):
    with pytest.raises(UsageError, match="no task head"):
        scored(writer, home / "classes.jsonl", "accuracy", stage="classify")


def incomparable(*runs):
    return table_of(runs).warnings


def recorded(folder, fingerprint, before, scored=10):
    folder.mkdir()
    columns = {"before": {"perplexity": before}, "after": {"perplexity": 3.0}}
    facts = {"columns": columns, "coverage": {"fingerprint": fingerprint, "scored": scored}}
    storage.write_record(folder / "evaluation.json", facts)
    return str(folder)


def test_runs_with_other_held_out_rows_or_another_start_are_not_comparable(tmp_path):
    one, same = recorded(tmp_path / "a", "x", 145.0), recorded(tmp_path / "b", "x", 145.0001)
    rows_, start = recorded(tmp_path / "c", "y", 120.1, 12), recorded(tmp_path / "d", "x", 120.1)
    assert incomparable(one, same) == [] and incomparable(one, str(tmp_path)) == []
    first, second = incomparable(one, rows_)
    assert "held-out rows differ" in first and "10 rows" in first and "12 rows" in first
    assert f"{one} and {rows_}: perplexity 145 and 120.1" in second
    assert incomparable(one, start) == [second.replace(rows_, start)]


def test_two_seeds_of_training_are_scored_on_the_same_rows(home):
    def trained(name, **changes):
        settings = {
            "model": str(home / "model"), "dtype": "fp32", "method": {"name": "lora", "r": 2},
            "data": {"train": str(home / "rows.jsonl"), "eval": 0.25, **changes.get("data", {})},
            "train": {"max_steps": 1, "batch_size": 4, "seed": changes.get("seed", 0)},
            "output": str(home / name),
        }  # fmt: skip
        return run(settings)

    first, second = trained("seed0"), trained("seed1", seed=1)
    assert first.scores["before"] == pytest.approx(second.scores["before"], rel=1e-5)  # batched otherwise
    assert first.scores["after"] != second.scores["after"]
    assert first.coverage["fingerprint"] == second.coverage["fingerprint"]
    assert incomparable(str(first.folder), str(second.folder)) == []
    other = trained("data1", data={"seed": 1})
    assert other.coverage["fingerprint"] != first.coverage["fingerprint"]
    assert "held-out rows differ" in incomparable(str(first.folder), str(other.folder))[0]
