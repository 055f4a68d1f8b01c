"""What is said about pairs before training: counts by hand, and each number with its rows."""

import json
from dataclasses import dataclass
from typing import ClassVar

import pytest

from graft.cli.data_report import report_lines
from graft.data import DataReport, RejectedRows, prepare
from graft.data.layouts import Accepts
from graft.data.pairs import Pairs
from graft.data.rankings import Judged, Rankings


@dataclass(frozen=True)
class Comparing:
    """What `prepare` asks of a stage, for rows that compare answers."""

    kind: type = Rankings
    labelled: ClassVar = False
    aligned: ClassVar = ()

    def accepts(self):
        return Accepts("preference", ("preference", "ranking", "judged"))

    def template(self, settings, tokenizer):
        return None

    def encoder(self, tokenizer, family, settings, labels=()):
        return self.kind(tokenizer, settings.max_length, settings.template)

    def pieces(self, example, tokenizer, labels):
        return None


@pytest.fixture
def written(tmp_path, settings):
    """written(train, eval, **settings): the settings of rows in two files."""

    def write(train, held_out=None, **changes):
        for name, rows in (("a", train), ("b", held_out or [])):
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        where = {"train": str(tmp_path / "a.jsonl"), "eval": held_out and str(tmp_path / "b.jsonl")}
        return settings(**where, **changes)

    return write


def pair(prompt, chosen, rejected, **more):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


def names(sources):
    return [source.rpartition("/")[2] for source in sources]


def test_the_longer_one_wins_as_often_as_counted_by_hand(written, chars):
    rows = [
        pair("a", "abcd", "ab"),  # with the end: 5 and 3 characters
        pair("b", "abc", "xyz"),
        pair("c", "a", "abc"),
        {"prompt": "d", "responses": ["a", "abc", "xyz"], "scores": [3, 1, 1]},  # two pairs, both shorter
    ]
    report = prepare(written(rows), chars, Comparing(), cache=False).report
    facts = report.pairs
    assert (facts.pairs, facts.longer, facts.equal) == (5, 1, 1) and facts.longer_wins == 1.5 / 5
    assert facts.ratio == pytest.approx((5 / 3 + 1 + 2 / 4 + 2 / 4 + 2 / 4) / 5)
    assert any("a reward model must beat 70.0%" in line for line in report_lines(report))
    (note,) = Pairs(pairs=4, longer=3, ratio=1.5).notes()
    assert "longer one in 75% of 4 pairs" in note and "must beat 75.0%" in note


def test_pairs_that_are_there_twice_or_the_other_way_round_are_named(written, bpe):
    rows = [
        pair("q", "the cat", "a dog"),
        pair("q", "a dog", "the cat"),
        pair("q", "the cat", "a dog"),
        pair("r", "the cat", "a dog"),
        {"prompt": "q", "responses": ["a mat", "a dog", "the cat"], "scores": [3, 2, 1]},
    ]
    facts = prepare(written(rows), bpe, Comparing(), cache=False).report.pairs
    assert (facts.repeated, names(facts.repeated_sources)) == (2, ["a.jsonl:3", "a.jsonl:5"])
    assert (facts.reversed, names(facts.reversed_sources)) == (3, ["a.jsonl:2", "a.jsonl:3", "a.jsonl:5"])
    assert any("2 pairs repeat another one; first" in note for note in facts.notes())


def test_prompts_of_the_evaluation_rows_among_the_training_rows_are_counted(written, bpe):
    train = [pair("q", "the cat", "a dog"), pair("r", "the cat", "a dog")]
    held = [pair("q", "two", "four"), pair("s", "the cat", "a dog")]
    report = prepare(written(train, held), bpe, Comparing(), cache=False).report
    assert (report.pairs.shared, names(report.pairs.shared_sources)) == (1, ["b.jsonl:1"])
    assert report.overlap == 0


def test_rows_with_one_prompt_are_held_out_together(written, bpe):
    rows = [pair(f"the cat {k // 4}", f"two {k}", f"four {k}") for k in range(40)]
    asked = written(rows)
    asked.eval = 0.2
    data = prepare(asked, bpe, Comparing(), cache=False)
    assert data.report.eval == 8 and data.report.pairs.shared == 0


def test_what_cannot_be_learnt_is_a_reject_with_its_line(written, bpe):
    begin = "the cat sat on a mat " * 6
    rows = [
        pair("q", "the cat", "a dog"),
        pair("q", "the cat", "the cat"),
        pair("q", "the cat", " "),
        pair("q", begin + "one", begin + "two"),
        pair("q", "the cat", "a dog", margin=-1),
    ]
    with pytest.raises(RejectedRows) as caught:
        prepare(written(rows), bpe, Comparing(), cache=False)
    assert "a.jsonl:2: identical answers" in str(caught.value)
    report = prepare(written(rows, bad_rows="skip", max_length=24), bpe, Comparing(), cache=False).report
    assert report.rejected == {
        "identical answers": 1, "no answer": 1, "identical after the cut": 1, "contradiction": 1,
    }  # fmt: skip
    assert {names([r.source])[0] for r in report.rejects} == {f"a.jsonl:{n}" for n in (2, 3, 4, 5)}
    assert report.pairs.pairs == 1 and report.train == 1


def test_answers_that_are_good_and_bad_are_named(written, bpe):
    def verdict(prompt, completion, label):
        return {"prompt": prompt, "completion": completion, "label": label}

    rows = [
        verdict("q", "the cat", True), verdict("q", "a dog", False), verdict("q", "the cat", False),
        verdict("r", "the cat", False),
    ]  # fmt: skip
    report = prepare(written(rows), bpe, Comparing(Judged), cache=False).report
    facts = report.pairs
    assert (facts.good, facts.bad, facts.contradicted) == (1, 3, 1)
    assert names(facts.contradicted_sources) == ["a.jsonl:3"]
    assert "1 good and 3 bad answers" in facts.notes()


def test_the_report_counts_the_tokens_of_answers(written, bpe):
    rows = [pair("the cat", " sat", " ran home", score_chosen=900_000, score_rejected=1)]
    report = prepare(written(rows), bpe, Comparing(), vocabulary=len(bpe), cache=False).report
    prompt, better, worse = (len(bpe(text)["input_ids"]) for text in ("the cat", " sat", " ran home"))
    assert report.tokens == prompt + better + worse + 2 and report.tokens_learnt == better + worse + 2
    assert report.lengths["100"] == prompt + max(better, worse) + 1


def test_only_tokens_of_answers_are_held_against_the_models_table(written, bpe):
    rows = [pair("the cat", " sat", " ran home", score_chosen=900, score_rejected=1)]
    tokens = bpe("the cat sat ran home</s>")["input_ids"]
    assert prepare(written(rows), bpe, Comparing(), vocabulary=max(tokens) + 1, cache=False).report.train == 1
    with pytest.raises(RejectedRows, match="token that the model lacks"):
        prepare(written(rows), bpe, Comparing(), vocabulary=max(tokens), cache=False)


def test_facts_about_pairs_survive_the_cache_and_the_files(written, bpe):
    asked = written([pair("q", "the cat", "a dog", margin=2.5), pair("q", "a dog", "the cat")])
    first = prepare(asked, bpe, Comparing())
    again = prepare(asked, bpe, Comparing())
    assert list(first.train) == list(again.train) and again.report == first.report
    assert isinstance(again.report.pairs, Pairs) and again.train[0].parts["scores"] == [2500, 0]
    assert DataReport.from_json(json.loads(json.dumps(first.report.json()))) == first.report
