"""Any conversation, any layout of template: what is learnt is an answer and its end, what is lost is named.

The oracle knows nothing of spans and marks. It renders with transformers alone, with one thing replaced by
other letters of the same number, and compares letter by letter: what changes, belongs to that thing.
"""

import json
import os

import pytest
from chat_layouts import GENERATION, LAYOUTS
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from jinja2.exceptions import TemplateError

from graft.data.mask import tokenise
from graft.data.messages import messages_of, with_answer
from graft.data.rows import BadRow, Row
from graft.data.templates import Template, prompt_ids, source

EXAMPLES = int(os.environ.get("GRAFT_FUZZ", "40"))  # conversations per layout
PIECES = (
    "d", "e", "m", "end", "im", "start", "user", "assistant", "system", "model", "s", "<", "|>", "<|", "</s",
    "think>", "<think", "[INST", "```", "\n", "\n\n", " ", "\t", "'", '"', "\\", "{", "}", '{"a": 1}', "é",
    "日本", "🙂", "\uf8ff", "\U00100001", "42", "the cat", "Let me look.", "User:", "assistant: d", "#",
)  # fmt: skip
WORDS = ("Oslo", "d", "end", "im", "7", "user", "the cat", "日本")  # need no escape in JSON
CONTROLS = (
    "<think>",
    "</think>",
    "<|im_",
    "<|end|>",
    "</s>",
    "<s>",
    "tool_call>",
    "<|User|>",
    "<|Assistant|>",
)

contents = (
    st.lists(st.sampled_from(PIECES), min_size=1, max_size=4)
    .map("".join)
    .filter(lambda text: text.strip() and not any(control in text for control in CONTROLS))
)
calls = st.builds(
    lambda name, city, count: {
        "id": "c1",
        "type": "function",
        "function": {"name": name, "arguments": {"city": city} | ({"count": count} if count else {})},
    },
    st.sampled_from(WORDS), st.sampled_from(WORDS), st.integers(0, 2),
)  # fmt: skip
TOOLS = [
    {"type": "function", "function": {"name": name, "description": "d", "parameters": {"type": "object"}}}
    for name in ("Oslo", "weather")
]


def turn(role, content):
    return {"role": role, "content": content}


@st.composite
def answers(draw):
    message = turn("assistant", draw(contents))
    if draw(st.integers(0, 3)) == 0:
        message["reasoning_content"] = draw(contents)
    if draw(st.integers(0, 4)) == 0:
        message["tool_calls"] = draw(st.lists(calls, min_size=1, max_size=2))
        message["content"] = draw(st.sampled_from(["", message["content"]]))
    if draw(st.integers(0, 4)) == 0:
        message[draw(st.sampled_from(["weight", "train", "loss"]))] = draw(
            st.sampled_from([0, 1, True, False])
        )
    return message


@st.composite
def conversations(draw):
    """Turns as a file has them: mostly question and answer, and now and then in any order."""
    turns = []
    if draw(st.integers(0, 2)) == 0:
        turns.append(turn("system", draw(st.one_of(st.just(" "), contents))))
    for _ in range(draw(st.integers(1, 3))):
        if draw(st.integers(0, 5)):
            turns.append(turn("user", draw(contents)))
        if draw(st.integers(0, 7)) == 0:
            extra = turn("tool", draw(contents))
            turns.append(extra | ({"name": draw(st.sampled_from(WORDS))} if draw(st.booleans()) else {}))
        turns.append(draw(answers()))
    return turns, draw(st.sampled_from([None, None, TOOLS]))


def other_letters(text):
    """As many letters, all of them other ones, blanks at both ends kept. A first of several stays."""
    core = text.strip()
    at, keep = text.index(core), len(core) > 1
    changed = "".join("x" if letter != "x" else "y" for letter in core[keep:])
    return text[:at] + core[:keep] + changed + text[at + len(core) :]


class Oracle:
    """What transformers writes of a conversation."""

    def __init__(self, tokenizer, layout, jinja, messages, tools):
        self.tokenizer, self.layout, self.jinja, self.tools = tokenizer, layout, jinja, tools
        self.messages = [{k: v for k, v in message.items() if k != "weight"} for message in messages]
        self.text = self.render(self.messages, tools)

    def render(self, messages, tools, ask=False):
        jinja = self.jinja
        if isinstance(jinja, dict):
            jinja = jinja["tool_use" if tools is not None else "default"]
        if self.layout.as_text:
            messages = [self._as_text(message) for message in messages]
        return self.tokenizer.apply_chat_template(
            messages, tools=tools, chat_template=jinja, add_generation_prompt=ask, tokenize=False
        )

    @staticmethod
    def _as_text(message):
        def written(call):
            text = json.dumps(call["function"]["arguments"], ensure_ascii=False)
            return call | {"function": call["function"] | {"arguments": text}}

        return message | {"tool_calls": [written(call) for call in message.get("tool_calls", ())]}

    def with_other(self, i, key):
        """The text with one thing of message i replaced."""
        message = dict(self.messages[i])
        if key == "tool_calls":
            message[key] = [
                call | {"function": {"name": other_letters(f["name"]), "arguments": self._others(f)}}
                for call in message[key]
                for f in [call["function"]]
            ]
        else:
            message[key] = other_letters(message[key])
        return self.render([*self.messages[:i], message, *self.messages[i + 1 :]], self.tools)

    @staticmethod
    def _others(function):
        return {k: other_letters(v) if isinstance(v, str) else v for k, v in function["arguments"].items()}

    def letters_of(self, i, key):
        """Positions of the text that change with one thing of message i."""
        other = self.with_other(i, key)
        assume(len(other) == len(self.text))  # it looks into what is said, and does something else
        return {k for k, (a, b) in enumerate(zip(self.text, other, strict=True)) if a != b}

    def things(self):
        for i, message in enumerate(self.messages):
            yield from ((i, key) for key in message if key != "role" and message[key])


@pytest.mark.parametrize("name", LAYOUTS)
@settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, database=None,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)  # fmt: skip
@given(drawn=conversations())
def test_every_conversation_is_learnt_as_it_is_written_or_refused(name, drawn, bpe):
    layout, (turns, tools) = LAYOUTS[name], drawn
    jinja = layout.jinja or source(bpe, "plain")
    messages = with_answer(messages_of(turns, "role", "content"))
    try:
        rendered = Template(bpe, jinja).learn(Row("f:1", "chat", messages, tools))
    except BadRow as bad:
        assert _is_right_to_refuse(bad, bpe, layout, jinja, messages, tools), bad
        return
    oracle = Oracle(bpe, layout, jinja, messages, tools)
    text = oracle.text
    assert text == rendered.text or (layout.only_last and text.startswith(rendered.text))

    # Every supervised character stands in an answer that is to be learnt, or is what the template adds to it.
    supervised = {k for a, b in rendered.spans for k in range(a, b)}
    learnt = [i for i, m in enumerate(messages) if m["role"] == "assistant" and m.get("weight") != 0]
    for i, key in oracle.things():
        letters = oracle.letters_of(i, key)
        if i in learnt:
            assert letters <= supervised, f"turn {i + 1}: {key} is not learnt as a whole"
        else:
            assert not letters & supervised, f"turn {i + 1}: {key} is learnt"
    said = {k for i in learnt for key in messages[i] if key in ("content", "reasoning_content", "tool_calls")
            and messages[i][key] for k in oracle.letters_of(i, key)}  # fmt: skip
    added = ["".join(" " if k in said else text[k] for k in range(a, b)) for a, b in rendered.spans]
    assert not any(opening in words for opening in layout.opens for words in added)

    # Every answer's end is supervised once.
    assert len(rendered.spans) == len(learnt)
    ends = [words.count(layout.end) for words in added]
    if layout.appended:
        answered = [m["role"] != "assistant" for m in messages[1:]] + [False]
        assert ends == [int(answered[i]) for i in learnt]
        assert bool(rendered.tail) == (learnt[-1] == len(messages) - 1)
    elif layout.only_last:
        assert ends == [0] * (len(ends) - 1) + [int(learnt[-1] == len(messages) - 1)]
    else:
        assert ends == [1] * len(ends)
    assert all(text[a:b].endswith(layout.end) for (a, b), n in zip(rendered.spans, ends, strict=True) if n)

    # What the template left out is named, and nothing else.
    lost = {f"{key} of a" for i, key in oracle.things() if oracle.with_other(i, key) == text}
    lost |= {"tools"} if tools and oracle.render(oracle.messages, None) == text else set()
    named = {
        what
        for what in rendered.unused
        if not what.startswith(("the role", "arguments", "part of", "weight"))
    }
    assert {what if what == "tools" else what.partition(" of a")[0] + " of a" for what in named} == lost

    # Prompts in use are what training rows begin with.
    ((ids, flags, _),) = tokenise([rendered], bpe)
    for i, (start, _) in zip(learnt, rendered.spans, strict=True):
        try:
            prompt = oracle.render(oracle.messages[:i], tools, ask=True) if i else ""
        except TemplateError:
            continue
        if i and text.startswith(prompt):
            assert start == len(prompt)
            prefix = prompt_ids({"messages": messages[:i], "tools": tools}, bpe, template=jinja)
            assert ids[: len(prefix)] == prefix and (len(prefix) == len(ids) or flags[len(prefix)])


def _is_right_to_refuse(bad, tokenizer, layout, jinja, messages, tools):
    """Whether transformers refuses the conversation, or does not write a turn, or nothing is to be learnt."""
    reason, detail, _ = bad.args
    if reason == "nothing to learn":
        return all(m.get("weight") == 0 for m in messages if m["role"] == "assistant")
    try:
        oracle = Oracle(tokenizer, layout, jinja, messages, tools)
    except (TemplateError, TypeError):
        return reason == "template failed"
    if "around other words" in detail:
        i = next(i for i in range(len(messages)) if f"turn {i + 1} " in detail)
        own = oracle.letters_of(i, "content")
        return any(min(oracle.letters_of(j, key)) < max(own) for j, key in oracle.things() if j < i)
    for i, message in enumerate(messages):
        keys = [key for key in ("content", "reasoning_content", "tool_calls") if message.get(key)]
        if message["role"] != "assistant":
            keys = ["content"]
        if all(oracle.with_other(i, key) == oracle.text for key in keys):
            return f"turn {i + 1}" in detail
    return False


@settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None,
          phases=[Phase.generate, Phase.shrink])  # fmt: skip
@given(drawn=conversations())
def test_a_template_that_says_what_is_generated_agrees(drawn, bpe):
    turns, _ = drawn
    told = [{"role": t["role"], "content": t["content"].strip()} for t in turns if t["content"].strip()]
    assume(told[-1]["role"] == "assistant" and told[0]["role"] != "assistant")
    rendered = Template(bpe, GENERATION).learn(Row("f:1", "chat", told))
    ((_, flags, _),) = tokenise([rendered], bpe)
    whole = bpe.apply_chat_template(
        told, chat_template=GENERATION, return_assistant_tokens_mask=True, return_dict=True,
    )  # fmt: skip
    assert [bool(flag) for flag in whole["assistant_masks"]] == flags
