"""What task heads answer in words: one forward for rows of several adapters, each as if it were alone."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from graft.base.base import Base
from graft.errors import AdapterError, DataError
from graft.evaluate import answers
from graft.evaluate.answers import predictions
from graft.methods.lora import LoRA
from graft.methods.task_head import TaskHead

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *["the", "cat", "sat", "on", "a", "mat", "dog", "ran", ".", ","]]
TAGS = ("B-PET", "I-PET", "O")


@pytest.fixture
def base():
    """A tiny BERT with a classifier and a tagger."""
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    core.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    torch.manual_seed(0)
    model = BertModel(BertConfig(vocab_size=len(WORDS), max_position_embeddings=12, **shape))
    base = Base(model, PreTrainedTokenizerFast(tokenizer_object=core, **names), "tiny")
    base.attach("topic", TaskHead(labels=("home", "street")))
    base.attach("pets", TaskHead(labels=TAGS, pool="none"))
    for name in ("topic", "pets"):
        base.adapters[name].parameters()[0].data.mul_(50)  # answers that differ by word
    return base


def by_hand(base, ids, name):
    weight, bias = base.adapters[name].parameters()
    with torch.no_grad():
        return base.model(torch.tensor([ids])).last_hidden_state[0] @ weight.T + bias


def test_one_batch_answers_every_row_by_its_own_adapter(base):
    texts = ["the cat sat on a mat.", "a dog", "the cat sat on a mat.", "a dog ran"]
    told = answers(base, texts, ["topic", "pets", "pets", "topic"])
    for text, name, answer in zip(texts, ["topic", "pets", "pets", "topic"], told, strict=True):
        assert answers(base, [text], [name]) == [answer]
    mean = by_hand(base, base.tokenizer("a dog ran")["input_ids"], "topic").mean(0)
    assert told[3] == ("home", "street")[mean.argmax()]
    tags = [TAGS[k] for k in by_hand(base, base.tokenizer("a dog")["input_ids"], "pets").argmax(-1)[1:-1]]
    assert told[1].replace("[PET ", "").replace("]", "") == "a dog"
    assert told[1].count("[PET ") == tags.count("B-PET")


def test_predictions_have_the_probabilities_of_all_classes_and_the_tag_of_each_word(base):
    topic, pets = predictions(base, ["a dog ran", "a dog"], ["topic", "pets"])
    wanted = by_hand(base, base.tokenizer("a dog ran")["input_ids"], "topic").mean(0).softmax(-1)
    assert topic.probabilities == pytest.approx(dict(zip(("home", "street"), wanted.tolist(), strict=True)))
    assert topic.label == topic.answer == max(topic.probabilities, key=topic.probabilities.get)
    tags = by_hand(base, base.tokenizer("a dog")["input_ids"], "pets").argmax(-1)[1:-1]
    assert pets.tags == tuple(TAGS[k] for k in tags) and pets.label is None and not pets.probabilities


def test_words_may_be_given_and_those_behind_the_longest_text_are_shown_untagged(base):
    words = ["cat"] * 10 + ["dog", "ran"]
    (told,) = answers(base, [words], ["pets"])
    assert told.endswith("dog ran") and told.replace("[PET ", "").replace("]", "") == " ".join(words)


def test_classes_without_names_are_numbers(base):
    base.attach("plain", TaskHead(num_labels=2))
    assert answers(base, ["a cat"], ["plain"])[0] in ("0", "1")


def test_what_cannot_be_answered_is_refused(base):
    base.attach("bare", LoRA(r=2))
    with pytest.raises(AdapterError, match="topic, pets"):
        answers(base, ["a cat"], ["bare"])
    for text, reason in (("a [SEP] cat", "control token"), ("", "empty")):
        with pytest.raises(DataError, match=reason):
            answers(base, [text], ["topic"])
