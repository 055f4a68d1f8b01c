"""A tokenizer.json is a program: one that takes minutes, all memory or breaks down is named soon."""

import base64
import copy
import json
import shutil

import pytest
from tiny_folder import write_model
from transformers import PreTrainedTokenizerFast

from graft.data.tokenising import PIECE, beginnings, encode
from graft.errors import DataError, ModelError
from graft.models.tokenizer import tokenizer_in

TEXT = "the cat sat"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "m")


@pytest.fixture
def folder(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "m")
    return tmp_path / "m"


def edit(folder, **changes):
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def replaced(pattern, content, times=1):
    step = {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}
    return {"normalizer": {"type": "Sequence", "normalizers": [copy.deepcopy(step) for _ in range(times)]}}


def split(pattern):
    return {
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"Regex": pattern},
            "behavior": "Isolated",
            "invert": False,
        }
    }


def around(ids):
    words = {"<bos>": {"id": "<bos>", "ids": ids, "tokens": ["<bos>"] * len(ids)}}
    single = [{"SpecialToken": {"id": "<bos>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    pair = [*single, {"Sequence": {"id": "B", "type_id": 1}}]
    return {
        "post_processor": {
            "type": "TemplateProcessing",
            "single": single,
            "pair": pair,
            "special_tokens": words,
        }
    }


def added(count, first=300):
    like = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    return {"added_tokens": [{"id": first + n, "content": f"<|s_{n}|>", **like} for n in range(count)]}


CHARACTERS = base64.b64encode(bytes(4) + b"x" * 100_000).decode()
HOSTILE = {
    "300,000 added tokens": (added(300_000), "300,000 tokens"),
    "added tokens far apart": (added(5_000, first=10_000), "ids without a gap"),
    "a text that grows 10^9 times": (replaced("a", "a" * 1000, 3), "cannot encode"),
    "a text that grows in small steps": (replaced("a", "a" * 8, 10), "cannot encode"),
    "a text that doubles 40 times": (replaced("a", "aa", 40), "cannot encode"),
    "a long text in front": ({"normalizer": {"type": "Prepend", "prepend": "a" * 10**7}}, "cannot encode"),
    "a regex bomb": (split("(a+)+$!"), "cannot encode"),
    "no regex": (split("("), "cannot be read"),
    "a character map": (
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": CHARACTERS}},
        "cannot encode",
    ),
    "a million tokens around a text": (around([1] * 1_000_000), "256 at most"),
    "a thousand steps": (replaced("a", "a", 1000), "256 at most"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_tokenizer_that_asks_for_too_much_is_named(what, folder):
    changes, said = HOSTILE[what]
    edit(folder, **changes)
    with pytest.raises(ModelError, match=said) as error:
        tokenizer_in(folder)
    assert str(folder) in str(error.value) and len(str(error.value)) < 1_000


GPT_4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SOUND = {
    "the expression of GPT-4o": split(GPT_4O),
    "the blanks of Llama": replaced(" ", "▁"),
    "8,192 tokens of speech": added(8_192),
    "an expression that repeats a group": split(r"(?:\s*\n)+|\w+"),
}


@pytest.mark.parametrize("what", SOUND)
def test_a_tokenizer_of_a_usual_form_loads(what, folder):
    if what == "8,192 tokens of speech":
        first = len(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"])
        SOUND[what] = added(8_192, first)
    edit(folder, **SOUND[what])
    assert tokenizer_in(folder)(TEXT)["input_ids"]


@pytest.mark.parametrize("key", ["model_max_length", "chat_template"])
@pytest.mark.parametrize("value", ["\ud800" * 3, True, [1], {"a": 1}, 5])
def test_settings_of_a_strange_kind_are_named_or_read(key, value, folder):
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    try:
        tokenizer_in(folder)("the cat " * 100)
    except ModelError as error:
        assert "tokenizer" in str(error)


def test_a_panic_while_rows_are_read_is_named(folder):
    edit(folder, **split("(a+)+$!"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))  # unchecked
    with pytest.raises(DataError, match="the tokenizer breaks down at a text"):
        encode(tokenizer, ["the cat", "a" * 3000])


def test_a_long_text_has_the_ids_of_the_whole(whole):
    tokenizer = tokenizer_in(whole)
    text = "The cat wants a ball.\n" * (PIECE // 20)  # a little more than one piece
    assert len(text) > PIECE
    ids, places = encode(tokenizer, [text, "the cat"], offsets=True)
    alone = tokenizer(["The cat wants a ball.\n", "the cat"], add_special_tokens=False)["input_ids"]
    assert ids[0] == alone[0] * (PIECE // 20) and ids[1] == alone[1]
    assert (
        places[0][-1][1] == len(text) and text[slice(*places[0][70_000])].strip() in "The cat wants a ball."
    )


@pytest.mark.parametrize("text", ["the cat wants a rope. ", " " * 50, "a", "\n"])
def test_the_beginning_of_a_text_has_the_first_ids_of_the_whole(text, whole):
    tokenizer = tokenizer_in(whole)
    long = text * (200_000 // len(text))
    (most,) = beginnings(tokenizer, [long], 100)
    assert most[:100] == encode(tokenizer, [long])[0][0][:100] and len(most) > 100
