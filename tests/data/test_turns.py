"""What is learnt and what is named, in conversations chosen by hand; the fuzz does the rest."""

import pytest
from chat_layouts import CHATML, DEEPSEEK, LAST_ONLY, LLAMA_3, PHI, QWEN_3, TOOL_USE

from graft.data.rows import BadRow, Row
from graft.data.templates import Template, prompt_ids, source
from graft.errors import DataError

TOOLS = [
    {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
]
CALLS = [{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]


def user(content, **rest):
    return {"role": "user", "content": content} | rest


def answer(content, **rest):
    return {"role": "assistant", "content": content} | rest


def system(content):
    return {"role": "system", "content": content}


def only_if(condition):
    """CHATML that leaves out the other turns."""
    jinja = CHATML.replace("%}<|im_start|>{{", "%}{% if " + condition + " %}<|im_start|>{{")
    return jinja.replace("\n{% endfor %}", "\n{% endif %}{% endfor %}")


def learnt(tokenizer, jinja, messages, tools=None, first=0):
    """The learnt texts, and the names of what is not written."""
    rendered = Template(tokenizer, jinja).learn(Row("f:1", "chat", messages, tools, first))
    return [rendered.text[a:b] for a, b in rendered.spans], set(rendered.unused)


@pytest.mark.parametrize(
    "said", ["d", "e", "end", "im", "im_end", "<", "|", ">", "user", "assistant", "Which?", "\\n"]
)
def test_short_answers_are_not_looked_for_in_the_end_token(said, bpe):
    assert learnt(bpe, CHATML, [user("Which?"), answer(said)]) == ([said + "<|im_end|>"], set())
    assert learnt(bpe, source(bpe, "plain"), [user(said), answer(said)])[0] == [f" {said}</s>"]


def test_an_answer_that_repeats_what_was_said_before_is_its_own(bpe):
    talk = [user("a"), answer("a"), user("a"), answer("a")]
    assert learnt(bpe, CHATML, talk, first=3)[0] == ["a<|im_end|>"]
    rendered = Template(bpe, CHATML).learn(Row("f:1", "chat", talk, first=3))
    assert rendered.spans[0][0] == rendered.text.rindex("a<|im_end|>")


def test_a_template_that_ends_the_last_turn_only_does_not_teach_the_question(bpe):
    talk = [user("6*7?"), answer("42"), user("And 8*8?"), answer("64"), user("1+1?"), answer("2")]
    assert learnt(bpe, LAST_ONLY, talk)[0] == [" 42", " 64", " 2</s>"]
    assert Template(bpe, LAST_ONLY).learn(Row("f:1", "chat", talk)).altered == 2


def test_the_end_of_a_call_is_that_of_the_turn(bpe):
    talk = [user("x"), answer("", tool_calls=CALLS), {"role": "tool", "content": "4"}, answer("It is.")]
    expected = '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call><|im_end|>'
    assert learnt(bpe, TOOL_USE, talk) == ([expected, "It is.<|im_end|>"], set())


def test_reasoning_is_learnt_where_it_is_written_and_named_where_not(bpe):
    talk = [user("x"), answer("a", reasoning_content="r"), user("y"), answer("b", reasoning_content="s")]
    assert learnt(bpe, QWEN_3, talk) == (
        ["a<|im_end|>", "<think>\ns\n</think>\n\nb<|im_end|>"],
        {"reasoning_content of an assistant turn"},
    )
    assert learnt(bpe, QWEN_3, talk[2:])[1] == set()
    assert learnt(bpe, CHATML, talk[2:]) == (["b<|im_end|>"], {"reasoning_content of an assistant turn"})
    only = [user("y"), answer("", reasoning_content="s")]
    assert learnt(bpe, QWEN_3, only)[0] == ["<think>\ns\n</think>\n\n<|im_end|>"]


def test_thoughts_that_a_template_cuts_out_of_an_answer_are_named(bpe):
    for thoughts in ("<think>two and two</think>four", "<think>\ntwo and two\n</think>\n\nfour"):
        talk = [user("x"), answer(thoughts)]
        texts, unused = learnt(bpe, DEEPSEEK, talk)
        assert texts[0].strip() == "four</s>" and unused == {"part of content of an assistant turn"}
        assert Template(bpe, DEEPSEEK).learn(Row("f:1", "chat", talk)).altered == 1
        assert learnt(bpe, CHATML, talk) == ([thoughts + "<|im_end|>"], set())


def test_a_question_that_is_cut_short_is_named(bpe):
    cut = CHATML.replace("{{ m.content }}", "{{ m.content[:10] }}")
    talk = [user("one two three four five"), answer("six")]
    assert learnt(bpe, cut, talk) == (["six<|im_end|>"], {"part of content of a user turn"})


def test_changes_of_letters_are_no_loss(bpe):
    for change in ("| upper", "| tojson", "| replace('\n', ' ')"):
        shaped = CHATML.replace("{{ m.content }}", "{{ m.content " + change + " }}")
        assert learnt(bpe, shaped, [user('say "é"\nnow'), answer("it\nis")])[1] == set()


@pytest.mark.parametrize("jinja", [CHATML, PHI, "plain"])
def test_tools_calls_and_names_that_are_not_written_are_named(jinja, bpe):
    jinja = source(bpe, "plain") if jinja == "plain" else jinja
    talk = [
        user("x", name="Ann"),
        answer("Let me look.", tool_calls=CALLS),
        user("y"),
        answer("b", score=0.5),
    ]
    _, unused = learnt(bpe, jinja, talk, TOOLS)
    assert unused - {"arguments of tool_calls"} == {
        "tools", "tool_calls of an assistant turn", "name of a user turn", "score of an assistant turn",
    }  # fmt: skip


def test_what_is_said_beside_a_call_is_named_if_it_is_not_written(bpe):
    _, unused = learnt(bpe, LLAMA_3, [user("x"), answer("Let me look.", tool_calls=CALLS)])
    assert unused == {"content of an assistant turn"}


@pytest.mark.parametrize(
    ("turns", "tools", "complaint"),
    [
        ([system("Paris"), user("Tell me about Paris."), answer("Paris")], None, r"turn 1 \(system\)"),
        ([user("x"), {"role": "tool", "content": "x"}, answer("x")], None, r"turn 2 \(tool\)"),
        ([user("x"), answer("", tool_calls=CALLS)], TOOLS, r"nothing for turn 2"),
        ([user("x"), answer("", tool_calls=CALLS), user("y"), answer("b")], None, r"nothing for turn 2"),
    ],
)  # fmt: skip
def test_a_turn_that_is_not_written_is_a_defect_also_where_its_words_stand_elsewhere(
    turns, tools, complaint, bpe
):
    two = only_if("m.role in ['user', 'assistant'] and m.content")
    with pytest.raises(BadRow, match=complaint):
        learnt(bpe, two, turns, tools)


def test_a_system_turn_that_is_lost_only_beside_tools_is_found_there(bpe):
    dropping = only_if("not (tools and m.role == 'system')")
    talk = [{"role": "system", "content": "s"}, user("x"), answer("s")]
    assert learnt(bpe, dropping, talk) == (["s<|im_end|>"], set())
    with pytest.raises(BadRow, match=r"turn 1 \(system\)"):
        learnt(bpe, dropping, talk, TOOLS)


def test_weights_choose_the_answers(bpe):
    talk = [user("x"), answer("five", weight=0), user("y", weight=1), answer("four")]
    assert learnt(bpe, CHATML, talk) == (["four<|im_end|>"], {"weight 1 of a user turn"})
    talk[3]["weight"] = 0
    with pytest.raises(BadRow, match="nothing to learn"):
        learnt(bpe, CHATML, talk)
    last = [user("x"), answer("four"), user("y"), answer("five", weight=0)]
    rendered = Template(bpe, LAST_ONLY).learn(Row("f:1", "chat", last))
    assert not rendered.tail and [rendered.text[a:b] for a, b in rendered.spans] == [" four"]


@pytest.mark.parametrize("turns", [
    [answer("Welcome."), user("hi"), answer("hello")],
    [{"role": "system", "content": "s"}, answer("Welcome."), user("hi"), answer("hello")],
])  # fmt: skip
def test_a_greeting_is_learnt_without_its_header(turns, bpe):
    for jinja, end in ((CHATML, "<|im_end|>"), (LLAMA_3, "<|eot_id|>"), (source(bpe, "plain"), "</s>")):
        assert [text.strip() for text in learnt(bpe, jinja, turns)[0]] == ["Welcome." + end, "hello" + end]


def test_a_template_that_wants_its_own_order_says_so(bpe):
    strict = (
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('must alternate') }}{% endif %}{{ m.content }}</s>{% endfor %}"
    )
    for turns in ([user("a"), user("b"), answer("c")], [answer("a"), user("b"), answer("c")]):
        with pytest.raises(BadRow, match="must alternate"):
            learnt(bpe, strict, turns)


def test_a_role_of_ones_own_is_used_where_the_template_tells_it(bpe):
    talk = [user("x"), {"role": "critic", "content": "y"}, answer("z")]
    assert learnt(bpe, CHATML, talk) == (["z<|im_end|>"], set())
    with pytest.raises(BadRow, match="critic"):
        learnt(bpe, DEEPSEEK, talk)
    talk[1]["role"] = "tool"
    assert learnt(bpe, DEEPSEEK, talk) == (["z</s>"], {"the role tool"})


def test_several_templates_are_chosen_as_transformers_does(bpe):
    both = {"default": CHATML, "tool_use": TOOL_USE}
    talk = [user("x"), answer("Let me look.", tool_calls=CALLS)]
    bpe.chat_template = both
    try:
        for tools in (None, TOOLS):
            expected = bpe.apply_chat_template(talk, tools=tools, tokenize=False)
            rendered = Template(bpe, source(bpe)).learn(Row("f:1", "chat", talk, tools))
            assert rendered.text == expected and bool(rendered.unused) == (tools is None)
            asked = {"messages": talk[:1], "tools": tools}
            assert prompt_ids(asked, bpe) == bpe.apply_chat_template(
                talk[:1], tools=tools, add_generation_prompt=True, return_dict=False
            )
        bpe.chat_template = {"tool_use": TOOL_USE}
        assert not Template(bpe, source(bpe)).learn(Row("f:1", "chat", talk, TOOLS)).unused
        with pytest.raises(BadRow, match="default"):
            Template(bpe, source(bpe)).learn(Row("f:1", "chat", talk))
        bpe.chat_template = {"rag": CHATML}
        with pytest.raises(DataError, match="rag"):
            source(bpe)
    finally:
        bpe.chat_template = None


def test_a_template_that_looks_at_the_words_is_followed(bpe):
    """The marks change what such a template writes; each part is then tried in other ways."""
    for condition in ("in ['d', 'stop']", "[:1] == 'd'", "[-1:] == 'd'", "| length == 3"):
        looks = CHATML.replace("\n{{", "{{ ' !' if m.content " + condition + " }}\n{{")
        for said in ("d", "do", "odd", "stop", "d and d"):
            texts, unused = learnt(bpe, looks, [user(said), answer("no")])
            assert texts == ["no<|im_end|>"] and not unused
        if condition != "| length == 3":
            shaped = looks.replace("<|im_start|>{{ m.role }}{{", "<|im_start|>{{ m.role }}\n{{")
            assert learnt(bpe, shaped, [user("x"), answer("odd")])[0][0].endswith("odd<|im_end|>")


def test_private_characters_of_a_text_are_no_marks(bpe):
    said = "\U00100000\U00100001 \uf8ff \U000f0000"
    assert learnt(bpe, CHATML, [user(said), answer(said)]) == ([said + "<|im_end|>"], set())
