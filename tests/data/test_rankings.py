"""Answers are encoded as supervised rows of their own would be, behind one prompt."""

import pytest
from chat_layouts import LAYOUTS, QWEN_3
from stage_tools import encoder_of

from graft.data.encode import IGNORED
from graft.data.rankings import Judged, Rankings
from graft.data.rows import Row, with_answers
from graft.data.templates import prompt_ids, source

ASK, TWO = "the cat", (" sat on a mat", " ran home.")
TALK = [{"role": "user", "content": "What is two and two?"}]
SAID = tuple([{"role": "assistant", "content": text}] for text in ("four", "three", "five"))


def rankings(tokenizer, max_length=1024, template=None, reads=False):
    return Rankings(tokenizer, max_length, template, reads=reads)


def answers_of(example):
    ends = example.parts["ends"]
    return [example.parts["answers"][a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)]


@pytest.mark.parametrize("template", [None, "plain", "chatml", "llama3", "zephyr", "vicuna", "alpaca"])
@pytest.mark.parametrize(
    "value", [(ASK, TWO, None), (TALK, SAID, (3.0, 2.0, 1.0)), ([*TALK, *SAID[0], *TALK], SAID[1:], None)]
)
def test_prompt_and_answer_have_the_ids_of_a_supervised_row(template, value, bpe):
    row = Row("f:1", "ranking", value)
    (example,) = rankings(bpe, template=template)([row]).examples
    supervised = encoder_of(bpe, stage="sft", template=template)(with_answers(row)).examples
    assert len(answers_of(example)) == len(value[1]) and example.labels == [IGNORED] * len(example.ids)
    for ids, alone in zip(answers_of(example), supervised, strict=True):
        length = len(example.ids) + len(ids)
        assert example.ids + ids == alone.ids[:length] and alone.labels[:length] == example.labels + ids
        assert set(alone.labels[length:]) <= {
            IGNORED
        }  # what a template writes behind the end of its last turn
    scores = value[2] and [1000 * int(score) for score in value[2]]
    assert example.parts.get("scores") in (scores, []) and "learnt" not in example.parts


def test_a_prompt_has_the_ids_with_which_the_model_is_asked(bpe, llama):
    said = tuple([{"role": "assistant", "content": text}] for text in ("two and two", "the cat"))
    for tokenizer in (bpe, llama):
        rows = [Row("f:1", "ranking", (ASK, TWO, None)), Row("f:2", "ranking", (TALK, said, None))]
        text, talk = rankings(tokenizer)(rows).examples
        assert text.ids == prompt_ids(ASK, tokenizer) and talk.ids == prompt_ids(TALK, tokenizer)
        for ids in answers_of(text) + answers_of(talk):
            assert ids[-1] == tokenizer.eos_token_id


def test_answers_that_merge_with_the_prompt_are_cut_at_its_end(bpe):
    row = Row("f:1", "ranking", ("the c", ("at", "ow"), None))
    (example,) = rankings(bpe)([row]).examples
    assert example.ids == prompt_ids("the c", bpe)
    assert [bpe.decode(ids) for ids in answers_of(example)] == ["at</s>", "ow</s>"]
    assert bpe("the cat")["input_ids"][: len(example.ids)] != example.ids  # they do merge


def test_a_thinking_template_writes_one_prompt_for_all_answers(bpe):
    bpe.chat_template = QWEN_3
    try:
        thought = [{"role": "assistant", "content": "four", "reasoning_content": "why"}]
        made = rankings(bpe)([Row("f:1", "ranking", (TALK, (thought, *SAID[1:]), None))])
    finally:
        bpe.chat_template = None
    (example,) = made.examples
    assert bpe.decode(example.ids).endswith("<|im_start|>assistant\n")
    assert [bpe.decode(ids) for ids in answers_of(example)[:2]] == [
        "<think>\nwhy\n</think>\n\nfour<|im_end|>", "<think>\n\n</think>\n\nthree<|im_end|>",
    ]  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("prompt", [TALK, [*TALK, *SAID[0], *TALK]])
def test_every_template_writes_prompt_and_answer_as_transformers_does(name, prompt, bpe):
    jinja = LAYOUTS[name].jinja or source(bpe, "plain")
    chat_template = jinja if isinstance(jinja, str) else jinja["default"]

    def rendered(messages, **how):
        return bpe.apply_chat_template(messages, chat_template=chat_template, tokenize=False, **how)

    bpe.chat_template = jinja
    try:
        (example,) = rankings(bpe)([Row("f:1", "ranking", (prompt, SAID, None))]).examples
    finally:
        bpe.chat_template = None
    asked = rendered(prompt, add_generation_prompt=True)
    for ids, said in zip(answers_of(example), SAID, strict=True):
        whole = rendered([*prompt, *said])
        text = bpe.decode(example.ids + ids)
        # Some end no last turn, and some write the end of the text behind that of the turn.
        assert text == whole + "</s>" or whole.removeprefix(text).strip() in ("", "</s>")
        if whole.startswith(asked):  # the words by which a server asks
            assert bpe.decode(example.ids) == asked
        assert said[0]["content"] in bpe.decode(ids) and bpe.decode(ids).endswith(LAYOUTS[name].end)


COUNTS = (
    "{{ messages | length }}{% for m in messages %} {{ m.role }}: {{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %} assistant:{% endif %}"
)


def test_a_template_that_writes_the_prompt_by_what_follows_is_refused_by_name(bpe):
    bpe.chat_template = COUNTS
    try:
        long = [*SAID[0], *TALK, *SAID[1]]
        rows = [
            Row("f:1", "ranking", (TALK, (long, SAID[1]), None)),
            Row("f:2", "ranking", (TALK, SAID, None)),
        ]
        made = rankings(bpe)(rows)
    finally:
        bpe.chat_template = None
    assert [(r.source, r.reason) for r in made.rejects] == [("f:1", "template failed")]
    assert "answer 2" in made.rejects[0].detail and made.examples.sources == ["f:2"]


def test_only_what_the_assistant_says_in_an_answer_is_learnt(bpe):
    row = Row("f:1", "ranking", (TALK, ([*SAID[0], *TALK, *SAID[1]], SAID[2]), None))
    (example,) = rankings(bpe, template="chatml")([row]).examples
    said, learnt = example.parts["answers"], example.parts["learnt"]
    assert len(said) == len(learnt)
    assert bpe.decode([i for i, use in zip(said, learnt, strict=True) if use]) == (
        "four<|im_end|>three<|im_end|>five<|im_end|>"
    )


def test_calls_of_tools_are_learnt_and_what_the_tools_return_is_not(bpe):
    call = {"function": {"name": "the", "arguments": {"a": "cat"}}}
    uses = [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "a mat"},
        *SAID[0],
    ]
    tools = [{"type": "function", "function": {"name": "the", "description": "d", "parameters": {}}}]
    bpe.chat_template = LAYOUTS["default and tool_use"].jinja
    try:
        made = rankings(bpe)([Row("f:1", "ranking", (TALK, (uses, SAID[1]), None), tools=tools)])
        prompt = prompt_ids(TALK, bpe, tools=tools)
    finally:
        bpe.chat_template = None
    (example,) = made.examples
    assert example.ids == prompt and '"description": "d"' in bpe.decode(prompt)
    said, learnt = example.parts["answers"], example.parts["learnt"]
    text = bpe.decode([i for i, use in zip(said, learnt, strict=True) if use])
    assert '"a": "cat"' in text and "four<|im_end|>three<|im_end|>" in text and "a mat" not in text
    assert "a mat" in bpe.decode(said)


def test_an_answer_that_is_too_long_is_cut_at_its_end_and_noted(bpe):
    long = " sat on a mat" * 9
    row = Row("f:1", "ranking", (ASK, (long, " ran"), None))
    (whole,) = rankings(bpe)([row]).examples
    room = len(whole.ids) + 12
    made = rankings(bpe, room)([row])
    (example,) = made.examples
    assert made.cut == ["f:1"] and example.ids == whole.ids
    first, second = answers_of(example)
    assert first == answers_of(whole)[0][:12] and first[-1] != bpe.eos_token_id
    assert second == answers_of(whole)[1] and second[-1] == bpe.eos_token_id


def test_answers_that_the_cut_makes_equal_are_refused(bpe):
    begin = " sat on a mat" * 9
    rows = [
        Row("f:1", "ranking", (ASK, (begin + " x", begin + " y"), None)),
        Row("f:2", "ranking", (ASK, (begin + " x", begin + " y", " no"), (1.0, 1.0, 0.0))),  # not compared
        Row("f:3", "ranking", (ASK * 30, TWO, None)),
        Row("f:4", "ranking", (TALK, (SAID[0], [{"role": "assistant", "content": " four "}]), None)),
    ]
    made = rankings(bpe, 30)(rows)
    assert [(r.source, r.reason) for r in made.rejects] == [
        ("f:1", "identical after the cut"), ("f:3", "cut away"), ("f:4", "identical answers"),
    ]  # fmt: skip
    assert made.examples.sources == ["f:2"] and made.cut == ["f:2"] and made.used == 1


def test_control_tokens_are_refused_in_answers_as_in_supervised_rows(bpe):
    rows = [
        Row("f:1", "ranking", (ASK, (" a</s>b", " c"), None)), Row("f:2", "judged", ("a<s>", " b", True)),
        Row("f:3", "ranking", (TALK, ([{"role": "assistant", "content": "x</s>"}], SAID[0]), None)),
    ]  # fmt: skip
    made = rankings(bpe)(rows)
    assert [r.reason for r in made.rejects] == ["control token"] * 3
    assert ["data.control_tokens" in r.remedy for r in made.rejects] == [True, True, False]
    assert [e.source for e in rankings(bpe, reads=True)(rows[:1]).examples] == ["f:1"]


def test_unknown_characters_of_an_answer_are_named(chars):
    made = rankings(chars)([Row("f:1", "ranking", ("What?", ("four", "#four"), None))])
    assert [r.reason for r in made.rejects] == ["unknown characters"] and "#" in made.rejects[0].detail


def test_what_a_template_leaves_out_counts_once_for_a_row(bpe):
    said = tuple([turn[0] | {"name": "the"}] for turn in SAID)
    made = rankings(bpe, template="plain")([Row("f:1", "ranking", (TALK, said, None))])
    assert made.unused == {"name of an assistant turn": 1}


def judged(tokenizer, rows, max_length=1024, template=None):
    return Judged(tokenizer, max_length, template)(rows)


def test_a_judged_answer_is_a_supervised_row_with_its_verdict(bpe):
    rows = [
        Row("f:1", "judged", (ASK, TWO[0], True)), Row("f:2", "judged", (TALK, SAID[0], False)),
        Row("f:3", "judged", (ASK, TWO[1], True)),
    ]  # fmt: skip
    made = judged(bpe, rows)
    supervised = encoder_of(bpe, stage="sft")([with_answers(row)[0] for row in rows]).examples
    for example, alone in zip(made.examples, supervised, strict=True):
        assert (example.ids, example.labels) == (alone.ids, alone.labels)
    assert [example.target for example in made.examples] == [1, 0, 1]
    # The nearest answer before it to another prompt; the first ones look back from the end.
    others = [bpe.decode(example.parts["other"]) for example in made.examples]
    assert others == [" four</s>", " sat on a mat</s>", " four</s>"]


def test_an_answer_to_another_prompt_fits_into_the_rest_of_the_row(bpe):
    rows = [Row("f:1", "judged", (ASK * 4, " sat", True)), Row("f:2", "judged", (ASK, TWO[0] * 14, False))]
    made = judged(bpe, rows, max_length=40)
    first, _ = made.examples
    prompt = first.labels.count(IGNORED)
    assert len(first.parts["other"]) == 40 - prompt and made.cut == ["f:2"]


def test_one_prompt_alone_has_no_answer_to_another(bpe):
    rows = [Row("f:1", "judged", (ASK, TWO[0], True)), Row("f:2", "judged", (ASK, TWO[1], False))]
    assert [example.parts.get("other") for example in judged(bpe, rows).examples] == [None, None]


def test_the_best_and_the_worst_of_a_ranking_are_a_good_and_a_bad_answer(bpe):
    rows = [Row("f:1", "ranking", (TALK, SAID, None)), Row("f:2", "ranking", (ASK, TWO, None))]
    made = judged(bpe, rows)
    learnt = [bpe.decode([i for i in e.labels if i != IGNORED]) for e in made.examples]
    assert learnt == [" four</s>", " five</s>", " sat on a mat</s>", " ran home.</s>"]
    assert [e.target for e in made.examples] == [1, 0, 1, 0] and made.used == 2
    assert made.unused == {"answers between the best and the worst": 1}
    assert made.examples.sources == ["f:1", "f:1", "f:2", "f:2"]
    assert [bpe.decode(e.parts["other"]) for e in made.examples[2:]] == [" five</s>", " five</s>"]
