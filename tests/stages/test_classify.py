"""Classification of one text and of two: what the model reads is what transformers would give it."""

import json
from types import SimpleNamespace

import pytest
import torch
from stage_tools import accepts, encoder_of, prepared, stage_named
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel, PreTrainedTokenizerFast

from graft.base.base import Base
from graft.data.feed import Feed
from graft.data.layouts import recognise
from graft.data.preparation import label_names
from graft.data.rows import Record, Row
from graft.evaluate import answers
from graft.methods.task_head import TaskHead
from graft.stages.classify import Classify

TEXT = "when did it open ? the mill opened in 1907 . who built a dam by river"
WORDS = TEXT.split()
BERT = {"single": "[CLS] $A [SEP]", "pair": "[CLS] $A [SEP] $B:1 [SEP]:1"}
LLAMA = {"single": "[CLS] $A", "pair": "[CLS] $A [CLS]:1 $B:1"}
PAIRS = [("when did it open ?", "the mill opened in 1907 ."), ("who built it ?", "a dam")]


def tokenizer_of(template):
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(special + WORDS)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    core.post_processor = processors.TemplateProcessing(**template, special_tokens=ends)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    types = ["token_type_ids"] if template is BERT else []
    given = ["input_ids", *types, "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=core, model_input_names=given, **names)


def base_of(kind):
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    shape |= {"vocab_size": len(WORDS) + 4, "max_position_embeddings": 32}
    if kind == "bert":
        base = Base(BertModel(BertConfig(**shape)), tokenizer_of(BERT), "tiny")
    else:
        base = Base(LlamaModel(LlamaConfig(**shape)), tokenizer_of(LLAMA), "tiny")
    base.model.eval()
    base.attach("task", TaskHead(labels=("no", "yes"), pool="mean"))
    base.adapters["task"].parameters()[0].data.normal_(std=5)
    return base


def rows_of(pairs):
    return [Row(f"f:{i}", "label", (pair, "yes")) for i, pair in enumerate(pairs, 1)]


@pytest.mark.parametrize(
    "names",
    [
        "question sentence", "sentence1 sentence2", "premise hypothesis", "question1 question2",
        "text text_pair", "text_a text_b", "sentenceA sentenceB", "question passage", "query document",
        "claim1 claim2",
    ],
)  # fmt: skip
def test_two_texts_with_a_label_are_read_in_their_order(names):
    first, second = names.split()
    row = recognise(Record("f:1", {second: "b", "label": 1, first: "a", "idx": 0}), accepts("classify"))
    assert (row.kind, row.value, row.unused) == ("label", (("a", "b"), 1), ("column 'idx'",))
    assert row.texts() == ["a", "b", "1"]
    blank = recognise(Record("f:1", {first: "a", second: " ", "label": 1}), accepts("classify"))
    assert blank.reason == "empty text" and second in blank.detail


def test_numbers_and_places_beside_two_texts_are_not_taken_for_them():
    fields = {"qid1": "7", "qid2": "8", "question1": "a", "question2": "b", "label": "0"}
    row = recognise(Record("f:1", fields), accepts("classify"))
    assert row.value == (("a", "b"), "0") and row.unused == ("column 'qid1'", "column 'qid2'")
    fields = {"start1": 1, "start2": 2, "end1": 3, "end2": 4, "sentence1": "a", "sentence2": "b", "label": 1}
    assert recognise(Record("f:1", fields), accepts("classify")).value == (("a", "b"), 1)


def test_two_columns_of_any_name_are_mapped():
    names = {"text": "Headline", "text_pair": "articleBody", "label": "Stance"}
    fields = {"Headline": "a", "articleBody": "b", "Stance": "agree", "Body ID": "7"}
    row = recognise(Record("f:1", fields), accepts("classify"), columns=names)
    assert row.value == (("a", "b"), "agree") and row.unused == ("column 'Body ID'",)


@pytest.mark.parametrize("template", [BERT, LLAMA], ids=["bert", "llama"])
@pytest.mark.parametrize("length", [64, 9])
def test_pairs_are_encoded_as_transformers_encodes_them(template, length):
    tokenizer = tokenizer_of(template)
    made = encoder_of(tokenizer, stage="classify", family="encoder", labels=["no", "yes"], max_length=length)(
        rows_of(PAIRS)
    )
    expected = tokenizer([a for a, _ in PAIRS], [b for _, b in PAIRS], truncation=True, max_length=length)
    assert [example.ids for example in made.examples] == expected["input_ids"]
    types = expected.get("token_type_ids", [None, None])
    assert [example.parts.get("token_types") for example in made.examples] == types
    assert (template is BERT) == (types[0] is not None)
    assert made.cut == (["f:1"] if length == 9 else [])
    assert [example.target for example in made.examples] == [1, 1]


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_the_logits_of_pairs_are_those_of_transformers(kind):
    base = base_of(kind)
    stage = Classify()
    examples = stage.encoder(base.tokenizer, "encoder", SimpleNamespace(max_length=32), ["no", "yes"])(
        rows_of(PAIRS)
    ).examples
    batch = stage.batches(base, 32).padded(list(examples))
    with torch.no_grad(), base.using("task"):
        ours = base(batch.inputs.pop("input_ids"), **batch.inputs)[0]
    weight, bias = base.adapters["task"].parameters()
    for pair, logits in zip(PAIRS, ours, strict=True):
        given = base.tokenizer(*pair, return_tensors="pt")
        with torch.no_grad():
            states = base.model(**given).last_hidden_state[0]
        torch.testing.assert_close(logits, states.mean(0) @ weight.T + bias, atol=1e-5, rtol=1e-5)


def test_the_order_and_the_second_text_of_a_pair_count():
    base = base_of("bert")
    first, second = PAIRS[0]
    stage, logits = Classify(), []
    for value in ((first, second), (second, first), first, f"{first} {second}"):
        encode = stage.encoder(base.tokenizer, "encoder", SimpleNamespace(max_length=32), ["no", "yes"])
        batch = stage.batches(base, 32).padded(list(encode([Row("f:1", "label", (value, "no"))]).examples))
        with torch.no_grad(), base.using("task"):
            logits.append(base(batch.inputs.pop("input_ids"), **batch.inputs)[0])
    for i, one in enumerate(logits):
        assert not any(torch.allclose(one, other, atol=1e-4) for other in logits[i + 1 :])


def test_answers_to_pairs_are_those_of_the_encoded_rows():
    base = base_of("bert")
    told = answers(base, [*PAIRS, "who built it ?"], ["task"] * 3)
    weight, bias = base.adapters["task"].parameters()
    for pair, answer in zip([*PAIRS, ("who built it ?",)], told, strict=True):
        with torch.no_grad():
            states = base.model(**base.tokenizer(*pair, return_tensors="pt")).last_hidden_state[0]
        assert answer == ("no", "yes")[int((states.mean(0) @ weight.T + bias).argmax())]
    assert answers(base, [], []) == []


def test_rows_of_one_text_and_of_two_share_a_batch():
    tokenizer = tokenizer_of(BERT)
    rows = rows_of([PAIRS[0], "who built it ?", PAIRS[1]])
    examples = encoder_of(tokenizer, stage="classify", family="encoder", labels=["yes"])(rows).examples
    assert [e.ids for e in examples] == [tokenizer(*row.asked)["input_ids"] for row in rows]
    base = base_of("bert")
    (batch,) = Feed(examples, Classify().batches(base, 32), 3, 3).step(0, 0)
    for ids, types, source in zip(
        batch.inputs["input_ids"], batch.inputs["token_type_ids"], batch.sources, strict=True
    ):
        row = next(row for row in rows if row.source == source)
        expected = tokenizer(*row.asked)
        width = len(expected["input_ids"])
        assert ids[:width].tolist() == expected["input_ids"] and not types[width:].any()
        assert types[:width].tolist() == expected["token_type_ids"]


def test_pairs_are_counted_shown_and_kept_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GRAFT_CACHE", str(tmp_path / "cache"))
    rows = [{"premise": a, "hypothesis": b, "label": i} for i, (a, b) in enumerate(PAIRS)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys = dict.fromkeys(("eval", "test", "template", "limit"))
    settings = SimpleNamespace(train=str(tmp_path / "a.jsonl"), format="auto", max_length=64, columns={},
                               bad_rows="strict", tag_names=[], **keys)  # fmt: skip
    first, again = (prepared(settings, tokenizer_of(BERT), stage="classify", family="encoder") for _ in "ab")
    assert list(first.train) == list(again.train)
    ids = [len(tokenizer_of(BERT)(*pair)["input_ids"]) for pair in PAIRS]
    assert (first.report.tokens, first.report.tokens_learnt) == (sum(ids), 0)
    assert (
        first.report.samples[0]["pieces"][0][0]
        == "[CLS] when did it open ? [SEP] the mill opened in 1907 . [SEP]"
    )


def test_pairs_are_no_prompts_to_compare_models_by():
    assert stage_named("classify").questions(rows_of([PAIRS[0], "who ?"])) == ["who ?"]


@pytest.mark.parametrize(
    "labels, names",
    [
        (["--1", "2"], ["--1", "2"]),
        ([-1, 0, 10, 9], ["-1", "0", "9", "10"]),
        (["01", "1"], ["01", "1"]),
        (["-", "1"], ["-", "1"]),
        (["²", "1"], ["1", "²"]),
        ([True, False], ["False", "True"]),
        ([1.0, 0.0, 2], ["0", "1", "2"]),
        (["1" * 5000, "2"], ["1" * 5000, "2"]),
    ],
)
def test_class_names_of_every_kind_are_in_order(labels, names):
    rows = [recognise(Record("f:1", {"text": "a", "label": label}), accepts("classify")) for label in labels]
    assert label_names(rows) == names


@pytest.mark.parametrize("label, word", [(3.8, "regression"), (["a", "b"], "list"), ({"a": 1}, "dict")])
def test_what_is_no_class_is_refused_by_name(label, word):
    reject = recognise(Record("f:1", {"text": "a", "label": label}), accepts("classify"))
    assert reject.reason == "bad label" and word in reject.detail
