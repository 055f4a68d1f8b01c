"""Rows become examples: what is learnt, where it is cut, what is counted."""

from itertools import pairwise

import pytest
from chat_layouts import QWEN_3
from stage_tools import encoder_of

from graft.data.encode import IGNORED, Example, Examples
from graft.data.rows import Row
from graft.data.templates import prompt_ids
from graft.errors import DataError


def learnt(example):
    return [t for t in example.labels if t != IGNORED]


def test_a_prompt_is_read_and_a_completion_with_its_end_is_learnt(llama, bpe):
    for tokenizer, first in [(llama, [1]), (bpe, [])]:
        (example,) = encoder_of(tokenizer, stage="sft")([Row("f:1", "pair", ("the cat", " sat on"))]).examples
        prompt = tokenizer("the cat", add_special_tokens=True)["input_ids"]
        assert example.ids[: len(prompt)] == prompt and prompt[: len(first)] == first
        assert example.labels[: len(prompt)] == [IGNORED] * len(prompt)
        assert tokenizer.decode(learnt(example)) == (" sat on</s>" if tokenizer is bpe else "sat on</s>")


def test_a_named_template_turns_prompt_and_completion_into_a_conversation(bpe):
    row = Row("f:1", "pair", ("the cat", " sat"))
    (plain,), (chat,) = (
        encoder_of(bpe, stage="sft", template=name)([row]).examples for name in (None, "plain")
    )
    assert (
        bpe.decode(plain.ids) == "the cat sat</s>"
        and bpe.decode(chat.ids) == "User: the cat Assistant: sat</s>"
    )


@pytest.mark.parametrize(
    "pair",
    [("a", "b"), ("a ", "b"), ("a", "\nb"), ("a: ", " b"), ("the c", "at"), ("f(", "x)"), ("問：", "二")],
)
def test_prompt_and_completion_are_joined_as_they_are(pair, bpe):
    (example,) = encoder_of(bpe, stage="sft")([Row("f:1", "pair", pair)]).examples
    assert bpe.decode(example.ids) == "".join(pair) + "</s>"
    prompt = prompt_ids(pair[0], bpe)
    assert example.ids[: len(prompt)] == prompt and bpe.decode(learnt(example)) == pair[1] + "</s>"


RENDERED = "<|im_start|>user\nthe cat<|im_end|>\n<|im_start|>assistant\nsat<|im_end|>\n"


def test_rows_that_the_template_wrote_before_are_read_as_its_tokens(bpe):
    texts = [Row("f:1", "text", RENDERED), Row("f:2", "pair", (RENDERED[:-14], RENDERED[-14:]))]
    bpe.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    try:
        made = encoder_of(bpe, stage="sft")(texts)
    finally:
        bpe.chat_template = None
    assert made.rendered == 2 and not made.rejects
    expected = bpe(RENDERED, add_special_tokens=False)["input_ids"]
    assert [e.ids for e in made.examples] == [expected] * 2  # and no second end
    assert [bpe.decode(learnt(e)) for e in made.examples] == [
        RENDERED.removeprefix("<|im_start|>"),
        "sat<|im_end|>\n",
    ]


def test_rows_of_a_thinking_template_are_known_with_and_without_thoughts(bpe):
    bpe.chat_template = QWEN_3
    texts = [RENDERED, RENDERED.replace("\nsat", "\n<think>\nwhy\n</think>\n\nsat")]
    try:
        made = encoder_of(bpe, stage="sft")([Row(f"f:{i}", "text", text) for i, text in enumerate(texts)])
        other = encoder_of(bpe, stage="sft")([Row("f:1", "text", "a <|im_start|> b <|im_end|>")])
    finally:
        bpe.chat_template = None
    assert [bpe.decode(example.ids) for example in made.examples] == texts
    assert [reject.reason for reject in other.rejects] == ["control token"]


def test_other_control_tokens_in_texts_are_read_where_the_recipe_says_so(bpe, llama):
    rows = [
        Row("f:1", "text", "the cat</s>the dog"),
        Row("f:2", "pair", ("a<s>", "b")),
        Row("f:3", "chat", CONTROL),
    ]
    made = encoder_of(bpe, stage="sft")(rows)
    assert [reject.source for reject in made.rejects] == ["f:1", "f:2", "f:3"]
    assert ["data.control_tokens" in reject.remedy for reject in made.rejects] == [True, True, False]
    made = encoder_of(bpe, stage="sft", control_tokens=True)(rows)
    assert [reject.source for reject in made.rejects] == ["f:3"]
    assert [bpe.decode(e.ids) for e in made.examples] == ["the cat</s>the dog</s>", "a<s>b</s>"]
    document = Row("f:1", "text", "<s>the cat</s>the dog")
    (example,) = encoder_of(llama, stage="sft", control_tokens=True)([document]).examples
    assert example.ids.count(1) == 1 and example.ids.count(2) == 2  # the beginning stands there already
    (window,) = encoder_of(bpe, stage="pretrain", control_tokens=True)(rows[:1]).examples
    assert bpe.decode(window.ids) == "the cat</s>the dog</s>"


CONTROL = [{"role": "user", "content": "a</s>"}, {"role": "assistant", "content": "b"}]


@pytest.mark.parametrize("where", ["tools", "arguments", "name"])
def test_control_tokens_anywhere_in_a_conversation_are_refused(where, bpe):
    call = {"function": {"name": "f", "arguments": {"deep": ["x</s>" if where == "arguments" else "x"]}}}
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "tool_calls": [call]}]
    talk[0] |= {"name": "</s>"} if where == "name" else {}
    tools = [{"function": {"name": "f", "description": "</s>" if where == "tools" else "d"}}]
    (reject,) = encoder_of(bpe, stage="sft")([Row("f:1", "chat", talk, tools)]).rejects
    assert reject.reason == "control token"


def test_an_encoder_decoder_learns_no_answer_that_is_empty_or_of_no_weight(t5):
    call = {"function": {"name": "the", "arguments": {"a": "cat"}}}
    ask, answer = {"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sat"}
    talks = [[ask, answer | {"weight": 0}], [ask, answer | {"content": "", "tool_calls": [call]}], [answer]]
    rows = [Row(f"f:{i}", "chat", talk) for i, talk in enumerate(talks, 1)]
    made = encoder_of(t5, stage="sft", family="seq2seq")(rows)
    assert [reject.reason for reject in made.rejects] == ["nothing to learn", "no answer", "template failed"]


def test_what_an_encoder_decoder_neither_reads_nor_writes_is_named(t5):
    call = {"function": {"name": "the", "arguments": {"a": "cat"}}}
    talk = [
        {"role": "user", "content": "the cat", "name": "Hello"},
        {"role": "assistant", "content": "sat on", "tool_calls": [call]},
    ]
    made = encoder_of(t5, stage="sft", family="seq2seq")([Row("f:1", "chat", talk, [call])])
    assert dict(made.unused) == {"name of a user turn": 1, "tool_calls of the answer": 1, "tools": 1}


def test_every_token_of_a_document_is_a_target_exactly_once(llama):
    text = "the cat sat on a mat; a dog ran home. " * 9
    whole = [1, *llama(text, add_special_tokens=False)["input_ids"], 2]
    for length in (5, 16, len(whole), 999):
        made = encoder_of(llama, stage="pretrain", max_length=length)([Row("f:1", "text", text)])
        assert [t for example in made.examples for t in learnt(example)] == whole[1:]
        assert all(2 <= len(example.ids) <= length for example in made.examples)
        assert made.used == 1 and not made.cut


def test_masked_windows_are_wrapped_and_offer_all_but_special_tokens(bert):
    text = "the cat sat on a mat; a dog ran home. " * 5
    bare = bert(text, add_special_tokens=False)["input_ids"]
    made = encoder_of(bert, stage="pretrain", objective="masked", family="masked", max_length=20)(
        [Row("f:1", "text", text)]
    )
    assert all(e.ids[0] == 2 and e.ids[-1] == 3 and len(e.ids) <= 20 for e in made.examples)
    assert [t for e in made.examples for t in e.ids[1:-1]] == bare
    assert [t for e in made.examples for t in learnt(e)] == [t for t in bare if t > 4]


def test_an_encoder_decoder_reads_the_prompt_and_writes_the_answer(t5):
    talk = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sat on"}]
    rows = [Row("f:1", "pair", ("the cat", "sat on")), Row("f:2", "chat", talk)]
    pair, chat = encoder_of(t5, stage="sft", family="seq2seq")(rows).examples
    assert t5.decode(pair.ids).split() == ["the", "cat", "</s>"]
    assert t5.decode(pair.parts["written"]).split() == ["sat", "on", "</s>"]
    assert t5.decode(chat.ids).endswith("Assistant: </s>") and chat.parts["written"] == pair.parts["written"]
    assert not learnt(pair)


def test_long_rows_are_cut_at_the_end_and_counted(llama, bert):
    made = encoder_of(llama, stage="sft", max_length=8)(
        [Row("f:1", "pair", ("a", "cat " * 30)), Row("f:2", "pair", ("a", "b"))]
    )
    assert [len(e.ids) for e in made.examples] == [8, 4] and made.cut == ["f:1"]
    made = encoder_of(bert, stage="classify", family="encoder", max_length=6, labels=["x"])(
        [Row("f:1", "label", ("the " * 9, "x"))]
    )
    assert made.examples[0].ids[-1] == 3 and len(made.examples[0].ids) == 6 and made.cut == ["f:1"]


def test_labels_keep_their_index_and_unknown_ones_are_rejected(bert):
    rows = [
        Row("f:1", "label", ("the cat", "b")),
        Row("f:2", "label", ("a dog", 7)),
        Row("f:3", "label", ("a", "z")),
    ]
    made = encoder_of(bert, stage="classify", family="encoder", labels=["7", "b"])(rows)
    assert [e.target for e in made.examples] == [1, 0]
    assert [(r.source, r.reason) for r in made.rejects] == [("f:3", "unknown label")]


def test_unknown_letters_of_a_prompt_are_counted_and_those_of_an_answer_rejected(chars):
    made = encoder_of(chars, stage="sft")(
        [Row("f:1", "pair", ("a = b", "c")), Row("f:2", "pair", ("a", "b = c"))]
    )
    assert made.unknown == 1 and [(r.source, r.reason) for r in made.rejects] == [
        ("f:2", "unknown characters")
    ]
    assert "'='" in made.rejects[0].detail


def test_the_unknown_token_in_a_text_is_no_control_token(llama):
    made = encoder_of(llama, stage="pretrain")(
        [Row("f:1", "text", "the <unk> sat"), Row("f:2", "text", "the </s> sat")]
    )
    assert [r.source for r in made.rejects] == ["f:2"] and made.unknown == 1


def test_a_model_that_cannot_write_or_stop_is_refused(bert):
    for family in ("masked", "causal"):
        with pytest.raises(DataError):
            encoder_of(bert, stage="sft", family=family)


def test_flat_storage_gives_back_what_was_put_in():
    given = [
        Example([5, 6, 7], [IGNORED, 6, 7], "f:1", 2, {"written": [9]}),
        Example([8], [IGNORED], "f:2", 0, {"written": []}),
        Example([1, 2], [1, IGNORED], "f:3", 1, {"written": [4, 4]}),
    ]
    stored = Examples()
    for example in given:
        stored.add(example)
    assert list(stored) == given and stored[-1] == given[-1] and stored[1:] == given[1:]
    assert stored.lengths() == [3, 1, 2]
    with pytest.raises(IndexError):
        stored[3]


TAGS = ["B-X", "I-X", "O"]


def tagged(tokenizer, *rows, **settings):
    made = [Row(f"f:{i}", "tags", row) for i, row in enumerate(rows, 1)]
    return encoder_of(tokenizer, stage="classify", family="encoder", labels=TAGS, **settings)(made)


@pytest.mark.parametrize("name", ["bpe", "llama", "bert"])
def test_the_first_token_of_every_word_carries_its_tag(name, request):
    tokenizer = request.getfixturevalue(name)
    words, tags = ["Assistant", "sat", "onmat"], ["B-X", "I-X", "O"]
    (example,) = tagged(tokenizer, (words, tags)).examples
    assert example.ids == tokenizer(" ".join(words))["input_ids"] and not learnt(example)
    spans = [(i, TAGS[tag]) for i, tag in enumerate(example.parts["tags"]) if tag != IGNORED]
    assert [tag for _, tag in spans] == tags
    starts = [i for i, _ in spans] + [len(example.ids)]
    spoken = [tokenizer.decode(example.ids[a:b], skip_special_tokens=True) for a, b in pairwise(starts)]
    assert name == "bert" or [word.strip() for word in spoken] == words


def test_tagged_rows_are_cut_between_their_special_tokens_and_counted(bert):
    made = tagged(bert, (["the"] * 9, ["O"] * 9), (["a", "cat"], ["B-X", "I-X"]), max_length=6)
    cut, whole = made.examples
    assert (len(cut.ids), cut.ids[0], cut.ids[-1]) == (6, 2, 3) and made.cut == ["f:1"]
    assert cut.parts["tags"] == [IGNORED, 2, 2, 2, 2, IGNORED] and whole.parts["tags"] == [
        IGNORED,
        0,
        1,
        IGNORED,
    ]


def test_a_tag_that_no_training_row_has_is_rejected(bert):
    made = tagged(bert, (["a"], ["B-Y"]), (["a"], ["O"]))
    assert [(r.source, r.reason) for r in made.rejects] == [("f:1", "unknown label")] and len(
        made.examples
    ) == 1
