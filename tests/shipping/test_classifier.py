"""Exported classifiers answer in transformers' own classes as was trained, or are refused with the reason."""

import json

import pytest
import torch
from peft import PeftModel
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    pipeline,
)

from graft.base.base import Base
from graft.errors import MergeError
from graft.methods.lora import LoRA
from graft.methods.task_head import TaskHead
from graft.shipping.certificate import CERTIFICATE
from graft.shipping.export import export
from graft.shipping.verify import verify
from models import randomise, tiny_model

NAMES = ("bad", "good", "mixed")
DECODERS = ("llama", "gpt2")
ENCODERS = ("bert", "roberta")
MORE = {
    "electra": {"embedding_size": 64},
    "albert": {"embedding_size": 16},
    "deberta-v2": {
        "relative_attention": True,
        "position_biased_input": False,
        "pos_att_type": ["p2c", "c2p"],
    },
    "mpnet": {},
}
SMALL = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "vocab_size": 96,
    "max_position_embeddings": 64,
}


def tokenizer(**special):
    """A tokenizer of words w0 to w95."""
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(96)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    keywords = {"unk_token": "w0", "pad_token": "w1", "eos_token": "w2"} | special
    return PreTrainedTokenizerFast(tokenizer_object=words, **keywords)


def classifier(family, head, **changes):
    """A base with a LoRA below a task head, both with random values."""
    settings = (SMALL | MORE[family] if family in MORE else {}) | changes
    model = tiny_model(family, bare=family in (*ENCODERS, *MORE), **settings)
    base = Base(model, tokenizer(), f"tiny-{family}")
    # Small enough that what rounding each sum anew makes of a merge stays below the tolerance of 1e-5.
    randomise(base.attach("task", [LoRA(r=4, target_modules="all-linear"), head]), scale=0.05)
    return base


def padded():
    """Three texts of different lengths: ids filled up with w1, and their mask."""
    rows = [list(range(40, 52)), list(range(60, 67)), [70, 71]]
    ids = torch.tensor([row + [1] * (12 - len(row)) for row in rows])
    return ids, torch.tensor([[1] * len(row) + [0] * (12 - len(row)) for row in rows])


def answers(base, folder, auto):
    """(ours, transformers') logits of one padded batch."""
    ids, mask = padded()
    model, info = auto.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    with torch.no_grad():
        ours = base(ids, adapters=["task"] * 3, attention_mask=mask)[0]
        theirs = model.eval()(input_ids=ids, attention_mask=mask).logits
    live = mask.bool() if ours.ndim == 3 else slice(None)
    return ours[live], theirs[live]


@pytest.mark.parametrize(
    ("family", "pool"),
    [(family, "last") for family in DECODERS]
    + [(family, "first") for family in (*ENCODERS, "deberta-v2")]
    + [pytest.param(family, "last", marks=pytest.mark.slow) for family in ("opt", "qwen2", "gemma")]
    + [pytest.param(family, "first", marks=pytest.mark.slow) for family in ("electra", "albert", "mpnet")],
)
def test_classes_of_texts_are_those_of_transformers_class(family, pool, tmp_path):
    base = classifier(family, TaskHead(labels=NAMES, pool=pool))
    bare = base.model.state_dict()[next(iter(base.model.state_dict()))].clone()
    folder = export(base, tmp_path / "out")
    ours, theirs = answers(base, folder, AutoModelForSequenceClassification)
    assert ours.shape == (3, 3) and ours.std() > 0.02
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)
    config = json.loads((folder / "config.json").read_text())
    assert config["id2label"] == {"0": "bad", "1": "good", "2": "mixed"}
    assert config["architectures"][0].endswith("ForSequenceClassification")
    assert torch.equal(base.model.state_dict()[next(iter(base.model.state_dict()))], bare)
    assert list(base.adapters) == ["task"] and not base.merged


@pytest.mark.parametrize(
    "family",
    ["llama", "bert"]
    + [pytest.param(family, marks=pytest.mark.slow) for family in ("gpt2", "roberta", "deberta-v2")],
)
def test_classes_of_words_are_those_of_transformers_class(family, tmp_path):
    base = classifier(family, TaskHead(labels=("O", "B-PER"), pool="none"))
    ours, theirs = answers(base, export(base, tmp_path / "out"), AutoModelForTokenClassification)
    assert ours.shape == (21, 2)
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)


def test_the_merged_lora_counts(tmp_path):
    base = classifier("llama", TaskHead(labels=NAMES))
    with_lora = answers(base, export(base, tmp_path / "both"), AutoModelForSequenceClassification)[1]
    alone = classifier("llama", TaskHead(labels=NAMES))
    head = next(insert for site, insert in base.adapters["task"].inserts if site.kind == "final")
    alone.detach("task")
    alone.attach("task", TaskHead(labels=NAMES))
    with torch.no_grad():
        alone.adapters["task"].parameters()[0].copy_(head.weight)
    probe = answers(alone, export(alone, tmp_path / "head"), AutoModelForSequenceClassification)[1]
    assert (with_lora - probe).abs().max() > 1e-2  # and a head alone, a linear probe, is exported as well


def test_a_pipeline_names_the_classes(tmp_path):
    base = classifier("bert", TaskHead(labels=NAMES, pool="first"))
    folder = export(base, tmp_path / "out")
    ids = torch.tensor([[5, 6, 7]])
    chances = base(ids, adapters=["task"])[0].softmax(-1)[0]
    told = pipeline("text-classification", str(folder), device="cpu", top_k=None)(["w5 w6 w7"])[0]
    assert {one["label"]: pytest.approx(one["score"], abs=1e-5) for one in told} == {
        name: float(chance) for name, chance in zip(NAMES, chances, strict=True)
    }


def test_a_reward_model_is_a_classifier_of_one_number(tmp_path):
    base = classifier("llama", TaskHead(num_labels=1, pool="last"))
    folder = export(base, tmp_path / "out")
    ours, theirs = answers(base, folder, AutoModelForSequenceClassification)
    assert ours.shape == (3, 1)
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)
    assert json.loads((folder / "config.json").read_text())["problem_type"] == "regression"


def test_the_rest_of_a_head_that_peft_loads_is_what_is_merged(tmp_path):
    base = classifier("llama", TaskHead(labels=NAMES))
    merged = answers(base, export(base, tmp_path / "out"), AutoModelForSequenceClassification)[1]
    export(base, tmp_path / "peft", to="peft")
    tiny_model("llama").save_pretrained(tmp_path / "base")
    plain = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "base", num_labels=3, pad_token_id=1
    )
    ids, mask = padded()
    with torch.no_grad():
        unmerged = PeftModel.from_pretrained(plain, tmp_path / "peft").eval()(ids, attention_mask=mask).logits
    torch.testing.assert_close(merged, unmerged, atol=1e-5, rtol=1e-5)


def test_text_that_ends_in_the_padding_token_gets_another_one(tmp_path):
    base = classifier("llama", TaskHead(labels=NAMES))
    own = tokenizer(pad_token="w2")  # which is the end of a text, too, as in many decoders
    own.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A w2", pair="$A w2 $B w2", special_tokens=[("w2", 2)]
    )
    base.tokenizer = own
    folder = export(base, tmp_path / "out")
    again = AutoTokenizer.from_pretrained(folder)
    assert again("w5 w6")["input_ids"] == [5, 6, 2] and again.pad_token_id == 0
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert model.config.pad_token_id == 0 and base.tokenizer is own
    both = again(["w5 w6", "w7 w8 w9 w10"], padding=True, return_tensors="pt")
    with torch.no_grad():
        ours = base(torch.tensor([[5, 6, 2]]), adapters=["task"])[0]
        torch.testing.assert_close(model(**both).logits[:1], ours, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("family", "head", "to", "reason"),
    [
        ("bert", TaskHead(labels=NAMES), "hf", "mean of all tokens.*reads the first token"),
        ("llama", TaskHead(labels=NAMES, pool="mean"), "hf", "mean of all tokens.*reads the last token"),
        ("bert", TaskHead(labels=NAMES, pool="first"), "awq", "awq has no place"),
    ],
)
def test_what_the_class_does_not_compute_is_refused_with_the_reason(family, head, to, reason, tmp_path):
    base = classifier(family, head)
    with pytest.raises(MergeError, match=reason):
        export(base, tmp_path / "out", to=to)
    assert not list(tmp_path.iterdir())


def test_a_class_that_turns_states_by_a_kink_is_refused(tmp_path):
    """DistilBERT's classifier has a ReLU, which is no straight line anywhere near zero."""
    settings = {"dim": 64, "n_heads": 4, "n_layers": 2, "hidden_dim": 128, "vocab_size": 96}
    base = Base(tiny_model("distilbert", bare=True, **settings), tokenizer(), "tiny-distilbert")
    randomise(
        base.attach("task", [LoRA(r=2, target_modules="all-linear"), TaskHead(labels=NAMES, pool="first")])
    )
    with pytest.raises(MergeError, match="DistilBertForSequenceClassification has pre_classifier"):
        export(base, tmp_path / "out")


def test_the_certificate_counts_classes_and_is_verified(tmp_path):
    model = tiny_model("bert", bare=True)
    model.save_pretrained(tmp_path / "base")
    tokenizer().save_pretrained(tmp_path / "base")
    from graft.models.load import load

    base = load(tmp_path / "base", dtype="fp32", task="encoder")
    randomise(
        base.attach("new", [LoRA(r=4, target_modules="all-linear"), TaskHead(labels=NAMES, pool="first")])
    )
    base.adapters["new"].save(tmp_path / "adapter")
    base.detach("new")
    base.load_adapter(tmp_path / "adapter", "task")
    folder = export(base, tmp_path / "out")
    facts = json.loads((folder / CERTIFICATE).read_text())
    assert facts["weights"]["survived"] == pytest.approx(1, abs=1e-3) and facts["weights"]["missing"] == []
    assert facts["logits"]["max"] < 1e-5 and facts["perplexity"]["written"] is None
    assert {one.state for one in verify(folder)} == {"same"}
