"""Prompts as ids: those with which the model is asked later, and the row unchanged beside them."""

import json
from copy import deepcopy
from types import SimpleNamespace

import asking
import pytest
import torch

from graft.cli.data_report import report_lines
from graft.data import preparation
from graft.data.layouts import Accepts, recognise
from graft.data.prompt_encoder import PromptEncoder, asked_of
from graft.data.rows import Record
from graft.data.templates import source
from graft.errors import UsageError
from graft.generate.prompts import encoded
from graft.recipe import read
from graft.runs.look import look
from graft.stages.ppo import Ppo

ACCEPTS = Accepts("ppo", ("prompt",))
ASK = {"role": "user", "content": "the cat sat?"}
TALK = [{"role": "system", "content": "a mat"}, ASK]
TOOLS = [{"type": "function", "function": {"name": "clock", "parameters": {}}}]
CHATML = (
    "{% if tools %}{{ tools | tojson }}\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML


def rows(*fields):
    return [recognise(Record(f"f.jsonl:{i}", own), ACCEPTS) for i, own in enumerate(fields, 1)]


def with_template(tokenizer, template):
    own = deepcopy(tokenizer)
    own.chat_template = template
    return own


def model_of(tokenizer):
    """What asking needs of a base."""
    embedding = torch.nn.Embedding(len(tokenizer), 1)
    model = SimpleNamespace(get_input_embeddings=lambda: embedding)
    return SimpleNamespace(tokenizer=tokenizer, family="causal", model=model)


def encode(tokenizer, given, max_length=64, template=None):
    return PromptEncoder(tokenizer, max_length, template)(given)


@pytest.mark.parametrize("kind", ["bpe", "llama", "chars"])
def test_a_text_has_the_ids_of_the_tokenizer_and_those_that_are_asked(request, kind):
    tokenizer = request.getfixturevalue(kind)
    (example,) = encode(tokenizer, rows({"prompt": "the cat sat?"})).examples
    assert example.ids == tokenizer("the cat sat?")["input_ids"]
    assert [example.ids] == encoded(model_of(tokenizer), ["the cat sat?"])
    assert example.labels == [-100] * len(example.ids) and example.source == "f.jsonl:1"


@pytest.mark.parametrize("tools", [None, TOOLS])
def test_a_conversation_has_the_ids_of_the_chat_template_and_those_that_are_asked(bpe, tools):
    tokenizer = with_template(bpe, CHATML)
    (example,) = encode(tokenizer, rows({"messages": TALK, "tools": tools}), max_length=200).examples
    text = tokenizer.apply_chat_template(TALK, tools=tools, tokenize=False, add_generation_prompt=True)
    assert example.ids == tokenizer(text, add_special_tokens=False)["input_ids"]
    prompt, columns = asked_of(example)
    assert prompt == ({"messages": TALK, "tools": tools} if tools else TALK) and columns == {}
    assert [example.ids] == encoded(model_of(tokenizer), [prompt])


def test_a_template_that_a_recipe_names_writes_texts_too(bpe):
    (text, talk) = encode(
        bpe, rows({"prompt": "the cat sat?"}, {"messages": TALK}), template="chatml"
    ).examples
    assert bpe.decode(text.ids) == "<|im_start|>user\nthe cat sat?<|im_end|>\n<|im_start|>assistant\n"
    assert asked_of(text)[0] == [ASK]  # so that rewards see what was asked, and the judge asks the same
    named = with_template(bpe, source(bpe, "chatml"))
    assert encoded(model_of(named), [[ASK], TALK]) == [text.ids, talk.ids]


def test_a_template_without_a_system_role_writes_it_or_says_so(bpe):
    tokenizer = with_template(bpe, NO_SYSTEM)
    found = encode(tokenizer, rows({"messages": [ASK]}, {"messages": TALK}))
    assert [example.source for example in found.examples] == ["f.jsonl:1"]
    (reject,) = found.rejects
    assert (reject.source, reject.reason, reject.detail) == ("f.jsonl:2", "template failed", "no system role")


def test_padding_that_is_the_end_token_leaves_prompts_as_they_are(bpe):
    tokenizer = with_template(bpe, CHATML)
    tokenizer.pad_token = tokenizer.eos_token
    before = encode(with_template(bpe, CHATML), rows({"messages": TALK})).examples
    assert [e.ids for e in encode(tokenizer, rows({"messages": TALK})).examples] == [before[0].ids]


def test_a_prompt_that_leaves_no_room_for_the_answer_is_a_reject(chars):
    length = len(chars("abcdefgh")["input_ids"])  # 9: <s> before it
    found = encode(chars, rows({"prompt": "abcdefgh"}, {"prompt": "abc"}), max_length=length - 1)
    assert [example.source for example in found.examples] == ["f.jsonl:2"]
    (reject,) = found.rejects
    assert reject.reason == "prompt too long" and reject.source == "f.jsonl:1"
    assert reject.detail == "9 tokens; data.max_length leaves 8 beside the answer"
    assert not encode(chars, rows({"prompt": "abcdefgh"}), max_length=length).rejects


def test_control_tokens_are_refused_in_what_is_asked_and_nowhere_else(bpe):
    found = encode(bpe, rows({"prompt": "a </s> b"}, {"prompt": "a b", "note": "</s>"}))
    assert [reject.reason for reject in found.rejects] == ["control token"]
    assert asked_of(found.examples[0])[1] == {"note": "</s>"}
    read = PromptEncoder(bpe, 64, None, reads=True)(rows({"prompt": "a </s> b"}))
    assert read.examples[0].ids.count(bpe.eos_token_id) == 1


def test_the_row_comes_back_as_it_was_written(bpe):
    given = {
        "prompt": "der Käse? 数学 🧀",
        "answer": 0.1 + 0.2,
        "many": [1, [None, {"ключ": ["ä", True]}], {"": "é"}],
        "large": 2**60,
        "half": "\ud83d of a character, which JSON may hold",
    }
    (example,) = encode(bpe, rows(given)).examples
    prompt, columns = asked_of(example)
    assert {"prompt": prompt, **columns} == given


def stage(**settings):
    return Ppo("ppo", rewards="mine:score", max_new_tokens=8, **settings)


def test_the_report_and_the_cache_hold_such_rows(settings, chars, tmp_path, monkeypatch):
    file = tmp_path / "rows.jsonl"
    given = [
        {"prompt": f"what is {i} and two?", "answer": {"n": i + 2, "in words": "zwölf"}} for i in range(8)
    ]
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in given))
    chosen = settings(train=str(file), eval=0.25, max_length=40)
    first = preparation.prepare(chosen, chars, stage())
    monkeypatch.setattr(preparation, "load_rows", lambda *a: pytest.fail("the cache was not read"))
    second = preparation.prepare(chosen, chars, stage())
    for split in ("train", "eval"):
        one, two = getattr(first, split), getattr(second, split)
        assert list(one) == list(two)
    told = {asked_of(e)[0]: asked_of(e)[1] for e in [*second.train, *second.eval]}
    assert told == {row["prompt"]: {"answer": row["answer"]} for row in given}
    report = second.report
    assert (report.read, report.train, report.eval) == (8, 6, 2)
    assert report.tokens == 6 * (1 + len("what is 0 and two?")) and report.tokens_learnt == 0
    assert report.unused == {} and report.lengths["100"] == 19
    assert report.samples[0]["pieces"][0][0].endswith("and two?")
    assert report_lines(report)


def test_more_room_for_answers_is_another_entry_of_the_cache(settings, chars, tmp_path):
    """A prompt that was short enough may now be too long."""
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "abcdefgh"}\n{"prompt": "ab"}\n')
    chosen = settings(train=str(file), max_length=17, bad_rows="skip")
    assert len(preparation.prepare(chosen, chars, stage()).train) == 2
    longer = Ppo("ppo", rewards="mine:score", max_new_tokens=9)
    assert len(preparation.prepare(chosen, chars, longer).train) == 1


def test_a_length_without_room_for_a_prompt_is_refused(chars):
    with pytest.raises(UsageError, match=r"max_length=8 and stage.max_new_tokens=8"):
        stage().encoder(chars, "causal", SimpleNamespace(max_length=8, template=None, control_tokens=False))


def test_rows_are_shown_without_any_reward(tmp_path, monkeypatch):
    """`graft data show --stage ppo`: what rows look like does not depend on who pays for the answers."""
    monkeypatch.setenv("GRAFT_CACHE", str(tmp_path / "cache"))
    home = asking.write_home(tmp_path)
    rows = {"train": str(home / "prompts.jsonl"), "eval": None, "max_length": 48}
    stage = {"name": "ppo", "max_new_tokens": 8}
    report = look(read({"model": str(home / "model"), "stage": stage, "data": rows}), 1)
    (shown,) = report.samples
    assert [learnt for _, learnt in shown["pieces"]] == [False]
    assert shown["pieces"][0][0].endswith("Day 0. What does the cat want? ")
