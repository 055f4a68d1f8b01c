"""Classes of tokens against transformers' token classification, and PEFT's files of it both ways."""

import copy
import json

import peft
import pytest
import torch
from torch.testing import assert_close
from transformers import (
    BertForTokenClassification,
    BertModel,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
)

from graft.base.base import Base
from graft.data.feed import Batch
from graft.errors import UsageError
from graft.methods.lora import LoRA
from graft.methods.task_head import TaskHead
from graft.objectives.classify import classification
from models import inputs, randomise, tiny_base, tiny_model

TARGETS = ("query", "value")
IDS = inputs("bert")["ids"]
MASK = torch.tensor([[1] * 7, [1] * 5 + [0] * 2, [1] * 3 + [0] * 4])


@pytest.fixture
def tagger():
    """A random BertForTokenClassification with 5 classes."""
    torch.manual_seed(0)
    config = copy.deepcopy(tiny_model("bert").config)
    config.num_labels = 5
    model = BertForTokenClassification(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    return model


def trunk(tagger, kind):
    """The same weights as a bare encoder, as a masked language model, or as the tagger itself."""
    if kind == "tagger":
        return copy.deepcopy(tagger)
    model = tiny_model("bert", bare=kind == "bare")
    inner = model if kind == "bare" else model.bert
    assert isinstance(inner, BertModel)
    missing = inner.load_state_dict(tagger.bert.state_dict(), strict=False).missing_keys
    assert all("pooler" in key for key in missing)
    return model


def answered(base, name):
    """The adapter's logits: of its head, or of the head that the base brought along."""
    with base.using(name), torch.no_grad():
        found = base(IDS, attention_mask=MASK)
    return found[0] if isinstance(found, list) else found.logits


@pytest.mark.parametrize("kind", ["bare", "masked", "tagger"])
def test_a_tagger_of_peft_gives_the_same_logits_here(tmp_path, tagger, kind):
    config = peft.LoraConfig(task_type="TOKEN_CLS", r=4, lora_alpha=8, target_modules=list(TARGETS))
    tuned = peft.get_peft_model(copy.deepcopy(tagger), config).eval()
    randomise_trained(tuned)
    tuned.save_pretrained(tmp_path)
    base = Base(trunk(tagger, kind))
    adapter = base.load_adapter(tmp_path, "ner")
    assert kind == "tagger" or (adapter.head.every_token and adapter.head.num_labels == 5)
    with torch.no_grad():
        theirs = tuned(input_ids=IDS, attention_mask=MASK).logits
        plain = tagger(input_ids=IDS, attention_mask=MASK).logits
    assert_close(answered(base, "ner"), theirs, atol=1e-5, rtol=1e-5)
    assert (theirs - plain).abs().max() > 1e-2


@pytest.mark.parametrize("kind", ["bare", "masked"])
def test_our_tagger_gives_the_same_logits_in_peft(tmp_path, tagger, kind):
    base = Base(trunk(tagger, kind))
    randomise(base.attach("ner", [LoRA(r=4, target_modules=TARGETS), TaskHead(num_labels=5, pool="none")]))
    base.adapters["ner"].save(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (saved["task_type"], saved["modules_to_save"]) == ("TOKEN_CLS", ["classifier"])
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(tagger), tmp_path).eval()
    with torch.no_grad():
        wanted = theirs(input_ids=IDS, attention_mask=MASK).logits
    assert_close(answered(base, "ner"), wanted, atol=1e-5, rtol=1e-5)
    again = Base(trunk(tagger, kind))
    again.load_adapter(tmp_path, "ner")
    assert torch.equal(answered(again, "ner"), answered(base, "ner"))


def test_a_tagger_on_a_decoder_is_transformers_own():
    model = tiny_model("llama")
    model.config.num_labels = 3
    theirs = LlamaForTokenClassification._from_config(model.config).eval()
    theirs.model.load_state_dict(model.model.state_dict())
    base = Base(model)
    randomise(base.attach("ner", TaskHead(num_labels=3, pool="none")))
    weight, bias = base.adapters["ner"].parameters()
    with torch.no_grad():
        theirs.score.weight.copy_(weight)
        theirs.score.bias.copy_(bias)
        wanted = theirs(IDS, attention_mask=MASK).logits
    assert_close(answered(base, "ner"), wanted, atol=1e-5, rtol=1e-5)


def test_a_classifier_of_peft_on_a_decoder_gives_the_same_logits_here(tmp_path):
    model = tiny_model("llama", pad_token_id=0)
    theirs = LlamaForSequenceClassification._from_config(model.config).eval()
    theirs.model.load_state_dict(model.model.state_dict())
    config = peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["q_proj"])  # lists both names of heads
    tuned = peft.get_peft_model(theirs, config).eval()
    randomise_trained(tuned)
    tuned.save_pretrained(tmp_path)
    base = Base(model)
    assert not base.load_adapter(tmp_path, "topic").head.every_token
    with torch.no_grad():
        wanted = tuned(input_ids=IDS * MASK, attention_mask=MASK).logits
        with base.using("topic"):
            assert_close(base(IDS * MASK, attention_mask=MASK)[0], wanted, atol=1e-5, rtol=1e-5)


def test_loss_and_gradient_are_transformers_own_sums_over_the_labelled_tokens(tagger):
    base = Base(trunk(tagger, "bare"))
    adapter = base.attach("ner", TaskHead(num_labels=5, pool="none"))
    adapter.restore_checkpoint_state(
        {f"0.0.classifier.{k}": v for k, v in tagger.classifier.state_dict().items()}
    )
    labels = torch.tensor([[-100, 0, 4, -100, 2, 1, -100], [-100, 3, 3, 0, -100, -100, -100], [-100] * 7])
    batch = Batch({"input_ids": IDS, "attention_mask": MASK}, labels, 7, ["f:1", "f:2", "f:3"])
    with base.using("ner"):
        loss, metrics = classification(base, batch)
    wanted = tagger(input_ids=IDS, attention_mask=MASK, labels=labels)
    assert_close(loss / metrics["tokens"], wanted.loss, atol=1e-6, rtol=1e-5)
    assert metrics == {"tokens": 7.0, "correct": float((wanted.logits.argmax(-1) == labels).sum())}
    loss.backward()
    wanted.loss.backward()
    assert_close(adapter.parameters()[0].grad / 7, tagger.classifier.weight.grad, atol=1e-6, rtol=1e-4)


def test_a_batch_of_a_classifier_and_a_tagger_gives_the_logits_of_each(tagger):
    base = Base(trunk(tagger, "bare"))
    randomise(base.attach("topic", [LoRA(r=2), TaskHead(num_labels=3)]), 0)
    randomise(base.attach("ner", [LoRA(r=2), TaskHead(num_labels=5, pool="none")]), 1)
    with torch.no_grad():
        ner, topic = base(IDS, adapters=["topic", "ner", "topic"], attention_mask=MASK)
    assert ner.shape == (1, 7, 5) and topic.shape == (2, 3)
    assert_close(ner[0], answered(base, "ner")[1], atol=1e-6, rtol=1e-5)
    assert_close(topic, answered(base, "topic")[[0, 2]], atol=1e-6, rtol=1e-5)


def test_names_tell_the_number_of_classes_and_wrong_words_are_refused():
    assert TaskHead(labels=("a", "b", "c")).num_labels == 3
    assert not tiny_base().attach("v", TaskHead(num_labels=1, init="zero")).parameters()[0].any()
    with pytest.raises(UsageError, match="none"):
        TaskHead(pool="tokens")


def randomise_trained(model, scale=0.2):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=generator) * scale)
