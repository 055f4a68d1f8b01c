"""Scores against numbers worked out by hand or published with the metric. Oracle: arithmetic."""

import math

import pytest

from graft.errors import UsageError
from graft.evaluate import metrics


def test_bleu_is_the_geometric_mean_of_clipped_precisions_with_brevity():
    # matches 4/5 3/4 2/3 1/2, so their product is 1/5; 5 words against 6
    by_hand = 100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25 * math.exp(1 - 6 / 5)
    assert metrics.bleu(["a b c d x"], [["a b c d e f"]]) == pytest.approx(by_hand, abs=1e-6)


def test_bleu_takes_the_best_of_several_references_and_rows_may_have_different_numbers():
    predictions = ["the cat sat on the mat", "a dog ran off today"]
    assert metrics.bleu(predictions, [["no", predictions[0]], [predictions[1]]]) == pytest.approx(100)


def test_chrf_of_equal_and_of_disjoint_texts():
    assert metrics.chrf(["abcdef"], [["abcdef"]]) == pytest.approx(100)
    assert metrics.chrf(["abc"], [["xyz"]]) == 0


def test_rouge_l_is_the_f_of_the_longest_common_subsequence_with_the_best_reference():
    # police killed the gunman / police kill the gunman / the gunman kill police (Lin 2004, section 2)
    stems = metrics.rouge_l(["the gunman shot police"], [["police shot the gunman"]])
    assert stems == pytest.approx(100 * 2 / 4)
    assert metrics.rouge_l(["x y", "b"], [["x y z", "q"], ["b"]]) == pytest.approx(100 * (0.8 + 1) / 2)


def test_exact_match_ignores_case_articles_punctuation_and_blanks():
    assert (
        metrics.exact_match(["The  cat!", "dog", "an apple"], [["cat"], ["cat", "a dog."], ["pear"]]) == 2 / 3
    )


def test_distinct_counts_different_n_grams_over_all_rows():
    assert metrics.distinct_1(["a b a", "b c"]) == 3 / 5
    assert metrics.distinct_2(["a b a", "a b", ""]) == 2 / 3
    assert metrics.distinct_2(["a"]) == 0


def test_macro_f1_is_the_plain_mean_over_predicted_and_true_classes():
    # class 0: 2*1/(1+2); class 1: 2*1/(2+1); class 2: predicted once, never true: 0; class 3: true once: 0
    assert metrics.macro_f1([0, 1, 1, 2], [0, 1, 0, 3]) == pytest.approx((2 / 3 + 2 / 3 + 0 + 0) / 4)
    assert metrics.accuracy([0, 1, 1, 2], [0, 1, 0, 3]) == 0.5


def test_a_function_of_the_user_gets_predictions_references_and_rows(tmp_path, monkeypatch):
    (tmp_path / "mine_scores.py").write_text(
        "def share(predictions, references, rows):\n"
        "    return sum(r['ok'] for r in rows) / len(predictions)\n"
        "def many(predictions, references, rows):\n    return {'first': len(references[0]), 'n': len(rows)}\n"
        "def broken(predictions, references, rows):\n    return predictions[9]\n"
        "def wrong(predictions, references, rows):\n    return 'good'\n"
    )
    monkeypatch.chdir(tmp_path)
    arguments = (["a", "b"], [["a", "c"], ["b"]], [{"ok": 1}, {"ok": 0}])
    assert metrics.user_scores("mine_scores:share", *arguments) == {"share": 0.5}
    assert metrics.user_scores("mine_scores:many", *arguments) == {"first": 2, "n": 2}
    for name, reason in [
        ("broken", "IndexError"),
        ("wrong", "returned 'good'"),
        ("absent", "cannot be imported"),
    ]:
        with pytest.raises(UsageError, match=reason):
            metrics.user_scores(f"mine_scores:{name}", *arguments)


def test_a_misspelt_metric_names_the_nearest():
    with pytest.raises(UsageError, match="perplexity"):
        metrics.check(["preplexity"])
    metrics.check(["perplexity", "bleu", "f1", "math:fsum"])


def test_entities_count_where_type_and_both_ends_are_right():
    # seqeval's own example: 2 entities are true, 2 told, only PER has both ends right
    true = [["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    told = [["O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    assert metrics.entity_scores(told, true) == {"precision": 0.5, "recall": 0.5, "f1": 0.5}
    # 1 of 3 told (a wrong type, one too many), 1 of 2 true; the stray I-PER of the third row tells nothing
    true = [["B-PER", "O", "B-LOC"], ["O", "O"], ["O"]]
    told = [["B-PER", "O", "B-ORG"], ["B-PER", "O"], ["I-PER"]]
    wanted = {"precision": 1 / 3, "recall": 1 / 2, "f1": 2 / 5}
    assert metrics.entity_scores(told, true) == pytest.approx(wanted)
    assert metrics.entity_scores([["O"]], [["O"]]) == {"precision": 0, "recall": 0, "f1": 0}


def test_tagged_rows_have_the_accuracy_of_words_and_the_f_of_entities():
    names, labels = ["accuracy", "f1", "perplexity"], ["B-X", "I-X", "O"]
    true, told = [[0, 1, 2], [2, 0]], [[0, 2, 2], [2, 0]]  # 4 of 5 words; 1 of 2 entities
    assert metrics.class_scores(names, told, true, labels) == {"accuracy": 0.8, "f1": 0.5}


def test_tags_that_are_no_entities_are_classes_of_words():
    # NOUN: told 2, true 1, hits 1; VERB: told 1, true 2, hits 1
    found = metrics.class_scores(["precision", "recall"], [[0, 0], [1]], [[0, 1], [1]], ["NOUN", "VERB"])
    assert found == {"precision": (1 / 2 + 1) / 2, "recall": (1 + 1 / 2) / 2}
