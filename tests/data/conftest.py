"""Tiny tokenizers of the kinds that exist, made here; and settings like the recipe's `data:`."""

from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

WORDS = (
    "the cat sat on a mat; a dog ran home. Hello there! What is two and two? four System user Assistant: "
    "Human ### 0 1 2 3 4 5 6 7 8 9 x y b c row "
) * 3

CONTROLS = [
    "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<start_of_turn>",
    "<end_of_turn>", "<|User|>", "<|Assistant|>", "<|end|>",
]  # fmt: skip


@pytest.fixture(scope="session")
def bpe():
    """Byte-level BPE as GPT-2 without BOS; control tokens of many chats; the last four are not special."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.ByteLevel(trim_offsets=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator([WORDS], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    tokenizer.add_tokens(CONTROLS, special_tokens=True)
    tokenizer.add_tokens(["<think>", "</think>", "<tool_call>", "</tool_call>"])
    return tokenizer


@pytest.fixture(scope="session")
def llama():
    """BPE with '▁' for blanks and a BOS of its own, as Llama; no control tokens."""
    core = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=False))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    core.decoder = decoders.Metaspace()
    special = ["<unk>", "<s>", "</s>"]
    core.train_from_iterator(
        [WORDS], trainers.BpeTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    )
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@pytest.fixture(scope="session")
def chars():
    """Characters: letters, digits, ':', '.', '?', ',' and the blank. No line break, '#' or '='."""
    known = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:.,? "
    vocabulary = {c: i for i, c in enumerate(["<unk>", "<s>", "</s>", *known])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@pytest.fixture(scope="session")
def bert():
    """Words, with [CLS] before, [SEP] behind and a [MASK]."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(set(WORDS.split()))]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        pad_token="[PAD]",
        unk_token="[UNK]",
    )


@pytest.fixture(scope="session")
def t5():
    """Words with </s> behind every text and ten sentinels, as T5."""
    names = [f"<extra_id_{i}>" for i in range(10)]
    words = ["<pad>", "</s>", "<unk>", *sorted(set(WORDS.split())), *reversed(names)]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=names,
    )


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """settings(**changes): what the recipe's data section gives, with the cache in a folder of this test."""
    monkeypatch.setenv("GRAFT_CACHE", str(tmp_path / "cache"))
    usual = {
        "train": None,
        "eval": None,
        "test": None,
        "format": "auto",
        "max_length": 64,
        "pack": True,
        "columns": {},
        "bad_rows": "strict",
        "template": None,
        "control_tokens": False,
        "limit": None,
        "tag_names": [],
    }
    return lambda **changes: SimpleNamespace(**{**usual, **changes})
