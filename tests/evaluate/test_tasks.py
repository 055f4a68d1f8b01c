"""Perplexity, classes and texts of held-out rows. Oracles: transformers' loss of single rows, arithmetic."""

import math

import pytest
import torch
from stage_tools import feed_of, stage_named
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from graft.base.base import Base
from graft.cli.say import score_table
from graft.data.encode import IGNORED, Example
from graft.data.rows import Row
from graft.errors import DataError, UsageError
from graft.evaluate import HeldOut, Scored, before_after, cases, evaluate, losses
from graft.methods.lora import LoRA
from graft.methods.task_head import TaskHead
from graft.stages.sft import SFT

WORDS = [
    "<pad>",
    "<s>",
    "</s>",
    "<unk>",
    "[MASK]",
    *["the", "cat", "sat", "on", "mat", "a", "dog", "ran", "red", "blue"],
]
ROWS = [[1, 5, 6, 7, 8, 5, 9, 2], [1, 10, 11, 2], [1, 10, 11, 12, 2], [1, 5, 13, 6, 2], [1, 14, 2]]


@pytest.fixture(scope="module")
def tokenizer():
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        mask_token="[MASK]",
    )


@pytest.fixture
def llama(tokenizer):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=2,
        initializer_range=0.3,
    )  # fmt: skip
    return Base(LlamaForCausalLM(config), tokenizer, "tiny")


def examples(rows=ROWS):
    return [Example(ids, [IGNORED, *ids[1:]], f"rows.jsonl:{i + 1}") for i, ids in enumerate(rows)]


@pytest.mark.parametrize(
    ("batch", "micro", "pack"), [(1, 1, False), (4, 2, False), (5, 5, True), (3, 1, True)]
)
def test_perplexity_weighs_every_token_alike_however_rows_are_batched(llama, tokenizer, batch, micro, pack):
    nll = tokens = hits = 0
    for ids in ROWS:
        row = torch.tensor([ids])
        with torch.no_grad():
            out = llama.model(row, labels=row)
        nll += float(out.loss) * (len(ids) - 1)
        hits += int((out.logits[0, :-1].argmax(-1) == row[0, 1:]).sum())
        tokens += len(ids) - 1
    feed = feed_of(examples(), tokenizer, batch_size=batch, micro_batch_size=micro, max_length=16, pack=pack)
    found = losses(llama, feed, SFT)
    assert found["perplexity"] == pytest.approx(math.exp(nll / tokens), rel=1e-5)
    assert (found["tokens"], found["token_accuracy"]) == (tokens, pytest.approx(hits / tokens))


def test_masked_models_count_the_hidden_tokens(tokenizer):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
    )
    base = Base(BertForMaskedLM(config), tokenizer, "tiny")
    settings = {"stage": "pretrain", "objective": "masked", "family": "masked", "pack": False}
    whole = [Example(ids, list(ids), "x:1") for ids in ROWS]
    feed = feed_of(whole, tokenizer, batch_size=5, micro_batch_size=5, **settings)
    (batch,) = feed.step(0, 0)
    with torch.no_grad():
        loss = base.model(**batch.inputs, labels=batch.labels).loss
    split = feed_of(whole, tokenizer, batch_size=5, micro_batch_size=1, **settings)
    assert losses(base, split, stage_named("pretrain", "masked"))["loss"] == pytest.approx(
        float(loss), rel=1e-5
    )


def test_encoder_decoders_count_the_tokens_they_write(tokenizer):
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(WORDS),
        d_model=16,
        d_kv=8,
        d_ff=24,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
    )
    base = Base(T5ForConditionalGeneration(config), tokenizer, "tiny")
    pairs = [(ROWS[0], [5, 6, 2]), (ROWS[1], [7, 8, 9, 10, 2])]
    written = [Example(read, [IGNORED] * len(read), "x:1", parts={"written": write}) for read, write in pairs]
    nll = 0.0
    for read, write in pairs:
        with torch.no_grad():
            nll += float(base.model(torch.tensor([read]), labels=torch.tensor([write])).loss) * len(write)
    found = losses(base, feed_of(written, tokenizer, batch_size=2, micro_batch_size=2, family="seq2seq"), SFT)
    assert (found["loss"], found["tokens"]) == (pytest.approx(nll / 8, rel=1e-5), 8)


def test_rows_without_a_supervised_token_are_an_error(llama, tokenizer):
    silent = [Example(ids, [IGNORED] * len(ids), "x:1") for ids in ROWS]
    with pytest.raises(DataError, match="supervised"):
        losses(llama, feed_of(silent, tokenizer, pack=False), SFT)


def test_rows_that_ask_the_same_are_one_case_with_several_references():
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    rows = [Row("a:1", "pair", ("p", "x")), Row("a:2", "pair", ("q", "y")), Row("a:3", "pair", ("p", " z"))]
    found = cases([*rows, Row("a:4", "chat", chat), Row("a:5", "text", "t")])
    assert [(case.prompt, case.references) for case in found] == [
        ("p", ["x", "z"]),
        ("q", ["y"]),
        (chat[:1], ["ho"]),
    ]
    assert [row.source for row in found[0].rows] == ["a:1", "a:3"]


def test_rows_with_tools_are_asked_with_them_and_calls_are_no_references():
    ask, answer, tools = (
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "ho"},
        [{"name": "f"}],
    )
    call = answer | {"tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    rows = [
        Row("a:1", "chat", [ask, answer], tools),
        Row("a:2", "chat", [ask, answer]),
        Row("a:3", "chat", [ask, call], tools),
        Row("a:4", "chat", [ask, answer | {"weight": 0}]),
    ]
    found = cases(rows)
    assert [case.prompt for case in found] == [{"messages": [ask], "tools": tools}, [ask]]
    assert [[row.source for row in case.rows] for case in found] == [["a:1"], ["a:2"]]


def test_written_texts_are_scored_beside_their_references(llama):
    rows = [
        Row(f"a:{i}", "pair", (prompt, "x"))
        for i, prompt in enumerate(["the cat", "a dog ran on the mat", "mat"])
    ]
    texts = [text.strip() for text in llama.generate([row.value[0] for row in rows], max_new_tokens=4)]
    right = [Row(row.source, "pair", (row.value[0], text)) for row, text in zip(rows, texts, strict=True)]
    held = HeldOut(rows=[right[0], rows[1], right[2]], writing={"max_new_tokens": 4, "batch_size": 2})
    kept, seen = [], []
    found = evaluate(llama, held, ["exact_match"], keep=kept, progress=lambda *state: seen.append(state))
    assert found == {"exact_match": pytest.approx(2 / 3)}
    assert [item["text"] for item in kept] == texts and seen[-1] == ("texts", 3, 3)


def test_metrics_without_material_say_what_is_missing(llama):
    for metric, words in (("perplexity", "data.eval"), ("bleu", "asks something")):
        with pytest.raises(DataError, match=words):
            evaluate(llama, HeldOut(), [metric])
    with pytest.raises(UsageError, match="bleu"):
        evaluate(llama, HeldOut(), ["blue"])


def test_before_and_after_differ_by_the_adapter_only(llama, tokenizer):
    for parameter in llama.attach("sql", LoRA(r=2, target_modules="all-linear")).parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    feed = feed_of(examples(), tokenizer, batch_size=5, micro_batch_size=5, pack=False)
    held = HeldOut(Scored(feed, SFT), [Row("a:1", "pair", ("the cat", "sat on"))], {"max_new_tokens": 3})
    table = before_after(llama, held, ["perplexity", "bleu"], adapter="sql")
    with llama.using("sql"):
        assert table.columns["after"]["perplexity"] == losses(llama, feed, SFT)["perplexity"]
    assert table.columns["before"]["perplexity"] == losses(llama, feed, SFT)["perplexity"]
    assert [name for name, _ in table.rows()] == ["perplexity", "bleu"]
    assert set(table.texts[0]) == {"prompt", "references", "before", "after"}
    assert score_table(table.columns).splitlines()[0].split() == ["metric", "before", "after"]


def test_classes_come_from_the_adapters_head_and_stand_beside_the_majority(tokenizer):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
    )
    base = Base(BertModel(config), tokenizer, "tiny")
    adapter = base.attach("intent", TaskHead(num_labels=3))
    head = adapter.inserts[0][1]
    predicted = []
    for ids in ROWS:
        with torch.no_grad():
            mean = base.model(torch.tensor([ids])).last_hidden_state.mean(1)
            predicted.append(int((mean @ head.weight.T + head.bias).argmax()))
    true = [predicted[0], predicted[1], (predicted[2] + 1) % 3, predicted[3], predicted[4]]
    rows = [Example(ids, [IGNORED] * len(ids), "x:1", target) for ids, target in zip(ROWS, true, strict=True)]
    kind = {"stage": "classify", "family": "encoder"}
    feed = feed_of(rows, tokenizer, batch_size=2, micro_batch_size=2, **kind)
    held = HeldOut(Scored(feed, stage_named("classify")))
    table = before_after(base, held, ["accuracy", "f1"], adapter="intent")
    assert table.columns["after"]["accuracy"] == 0.8
    assert table.columns["majority"]["accuracy"] == max(true.count(label) for label in true) / 5


def test_evaluation_leaves_modes_as_they_were(llama, tokenizer):
    llama.attach("sql", LoRA(r=2, lora_dropout=0.5))
    llama.train(True)
    modes = [module.training for module in llama.model.modules()]
    with llama.using("sql"):
        feed = feed_of(examples(), tokenizer, pack=False)
        assert losses(llama, feed, SFT) == losses(llama, feed, SFT)  # no dropout inside
    assert [module.training for module in llama.model.modules()] == modes
    assert all(insert.training for _, insert in llama.adapters["sql"].inserts)
