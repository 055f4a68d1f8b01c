"""The generator of the embedded data: seeded, split by name, and true to its own attribute lists."""

import json
import random
import subprocess
import sys
from itertools import islice

import pytest

from graft.data import tags
from graft.errors import DataError, UsageError
from graft.seedling import dataset, entities
from graft.seedling.coverage import coverage, is_verbatim
from graft.seedling.phrases import PHRASES
from graft.seedling.products import GROUPS, Product, product, products
from graft.seedling.writing import INSTRUCTION, attribute_list, describe, documents, sft_rows


def test_text_depends_on_the_seed_and_not_on_the_process():
    code = (
        "from graft.seedling.writing import documents, sft_rows; "
        "print(repr((documents(20, 5), sft_rows(20, 5))))"
    )
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert other == repr((documents(20, 5), sft_rows(20, 5)))  # strings hash differently in each process
    assert documents(20, 5) != documents(20, 6)


def test_held_out_products_share_no_name_and_no_combination_with_training():
    train = list(islice(products("train", 0), 3000)) + list(islice(products("train", 2), 3000))
    held_out = list(islice(products("held-out", 3), 300))
    assert {p["name"] for p in train}.isdisjoint(p["name"] for p in held_out)
    assert {p.attributes[1:] for p in train}.isdisjoint(p.attributes[1:] for p in held_out)


def test_no_held_out_name_occurs_in_any_training_text():
    text = "\n".join(documents(1000, 0)) + "\n".join(
        row["prompt"] + row["completion"] for row in sft_rows(1000, 2)
    )
    assert not [p["name"] for p in islice(products("held-out", 3), 300) if f" {p['name']} " in text]


def test_one_name_in_ten_is_held_out():
    share = sum(product(0, i).split == "held-out" for i in range(5000)) / 5000
    assert share == pytest.approx(
        0.1, abs=0.02
    )  # products repeat names, so the spread is wider than binomial


@pytest.mark.parametrize("split", ["train", "held-out"])
def test_reference_descriptions_state_every_attribute_and_never_repeat_the_list(split):
    for row, item in zip(sft_rows(500, 3, split), products(split, 3), strict=False):
        assert coverage(row["completion"], item) == 1.0
        assert not is_verbatim(row["completion"], item)


def test_every_phrase_of_every_attribute_carries_its_value_once():
    for phrasing in PHRASES.values():
        for template in (*phrasing.predicates, *phrasing.attached, *phrasing.sentences):
            assert template.count("{v}") == 1
        assert all(question.count("{it}") == 1 and "{v}" not in question for question in phrasing.questions)


def test_every_attribute_of_every_type_can_be_said():
    assert {key for group in GROUPS.values() for key in group.keys} == set(PHRASES)


def test_pretraining_text_never_shows_the_task():
    texts = documents(2000, 0)
    assert not any(INSTRUCTION in text or "Description:" in text for text in texts)


def test_a_prompt_lists_every_attribute_and_ends_where_the_text_begins():
    row, item = sft_rows(1, 3)[0], next(products("train", 3))
    assert row["prompt"] == f"{INSTRUCTION}\n\n{attribute_list(item)}\n\nDescription:\n"
    assert all(f"\n{key}: {value}\n" in row["prompt"] for key, value in item.attributes)


def test_articles_agree_with_the_word_that_follows():
    item = Product((("name", "Aroda"), ("type", "armchair"), ("style", "elegant coastal")))
    for seed in range(50):
        text = describe(item, random.Random(seed))
        assert " a a" not in text and " a e" not in text


def test_a_data_set_is_written_once_and_found_again(tmp_path):
    path = dataset("seedling:descriptions-held-out", tmp_path)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert rows == sft_rows(len(rows), 3, "held-out") and set(rows[0]) == {"prompt", "completion"}
    stamp = path.stat().st_mtime_ns
    assert dataset("descriptions-held-out", tmp_path) == path and path.stat().st_mtime_ns == stamp
    assert list(tmp_path.iterdir()) == [path]


def test_an_unknown_data_set_names_the_nearest(tmp_path):
    with pytest.raises(DataError, match="did you mean 'seedling:descriptions'"):
        dataset("seedling:description", tmp_path)


def test_an_unknown_split_is_refused():
    with pytest.raises(UsageError, match="train or held-out"):
        next(products("test", 0))


def test_every_value_of_a_sentence_is_an_entity_of_its_attribute():
    made = entities.rows(400, 6)
    for row, item in zip(made, products("train", 6), strict=False):
        found = [(kind.lower(), " ".join(row["tokens"][a:b])) for kind, a, b in tags.entities(row["tags"])]
        assert all(item[key] == value for key, value in found)
        text = " ".join(row["tokens"])
        assert text.count(item["name"]) == sum(key == "name" for key, _ in found)
        assert tags.first_orphan(row["tags"]) is None and not any(
            mark in text for mark in entities.MARKS.values()
        )
    assert {tag[2:].lower() for row in made for tag in row["tags"]} == {"", "name", "type", *PHRASES}
    assert 0 < sum(set(row["tags"]) == {"O"} for row in made) < 80


def test_tagged_sentences_are_those_of_the_descriptions_with_articles_that_agree():
    for row in entities.rows(300, 7, "held-out"):
        for a, b in zip(row["tokens"], row["tokens"][1:], strict=False):
            assert a.lower() not in ("a", "an") or (a.lower() == "an") == (b[0] in "aeio")


def test_the_sheet_of_entities_reads_as_rows(tmp_path):
    path = dataset("seedling:entities-held-out", tmp_path)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert rows == entities.rows(200, 7, "held-out") and set(rows[0]) == {"tokens", "tags"}
