"""Arguments of calls are written as JSON, once, whatever form the row has and the template wants."""

import json

import pytest

from graft.data.rows import BadRow, Row
from graft.data.templates import Template
from graft.data.tool_calls import schemas

HEAD = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.name }} "
)
TAIL = (
    "</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# What a template does with `c.function.arguments`, and what should be there.
WANTS = {
    "encodes": ("{{ c.function.arguments | tojson }}", '{"city": "Oslo"}'),
    "encodes the whole call": ("{{ c.function | tojson }}", '{"name": "f", "arguments": {"city": "Oslo"}}'),
    "joins texts": ("{{ '```' + c.function.arguments + '```' }}", '```{"city": "Oslo"}```'),
    "prints": ("{{ c.function.arguments }}", '{"city": "Oslo"}'),
    "takes both": (
        "{% if c.function.arguments is string %}{{ c.function.arguments }}{% else %}"
        "{{ c.function.arguments | tojson }}{% endif %}",
        '{"city": "Oslo"}',
    ),
    "writes parameters": (
        "{% for k, v in c.function.arguments.items() %}<{{ k }}>{{ v }}</{{ k }}>{% endfor %}",
        "<city>Oslo</city>",
    ),
}


def talk(*arguments):
    calls = [{"type": "function", "function": {"name": "f", "arguments": a}} for a in arguments]
    return [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": calls},
    ]


@pytest.mark.parametrize("wants", WANTS)
@pytest.mark.parametrize("given", [{"city": "Oslo"}, '{"city": "Oslo"}'])
def test_arguments_are_written_once(wants, given, bpe):
    written, expected = WANTS[wants]
    rendered = Template(bpe, HEAD + written + TAIL).learn(Row("f:1", "chat", talk(given)))
    assert [rendered.text[a:b] for a, b in rendered.spans] == [
        f"<tool_call>f {expected}</tool_call><|im_end|>"
    ]
    assert not rendered.unused


def test_a_text_that_the_template_takes_stays_letter_by_letter(bpe):
    given = '{"city":"\\u00c5s"}'
    rendered = Template(bpe, HEAD + WANTS["takes both"][0] + TAIL).learn(Row("f:1", "chat", talk(given)))
    assert given in rendered.text


def test_texts_and_objects_beside_each_other_are_written_alike(bpe):
    for wants in ("encodes", "joins texts", "takes both"):
        row = Row("f:1", "chat", talk({"city": "Oslo"}, '{"city": "Rome"}'))
        text = Template(bpe, HEAD + WANTS[wants][0] + TAIL).learn(row).text
        assert '{"city": "Oslo"}' in text and '{"city": "Rome"}' in text


def test_the_prompt_after_a_call_is_what_training_wrote(bpe):
    turns = [
        *talk('{"city": "Oslo"}'),
        {"role": "tool", "content": "4"},
        {"role": "assistant", "content": "Cold."},
    ]
    for wants in WANTS:
        template = Template(bpe, HEAD + WANTS[wants][0] + TAIL)
        assert template.learn(Row("f:1", "chat", turns)).text.startswith(template.ask(turns[:-1]).text)


def test_arguments_that_are_no_object_are_texts(bpe):
    rendered = Template(bpe, HEAD + WANTS["encodes"][0] + TAIL).learn(Row("f:1", "chat", talk("Oslo")))
    assert '<tool_call>f "Oslo"</tool_call>' in rendered.text


@pytest.mark.parametrize("given", [{"count": 4}, {}, {"city": "Oslo"}, '{"city": "Oslo"}'])
def test_arguments_that_a_template_leaves_out_are_named(given, bpe):
    rendered = Template(bpe, HEAD + TAIL).learn(Row("f:1", "chat", talk(given)))
    assert "arguments of tool_calls" in rendered.unused


TOOL = {
    "type": "function",
    "function": {"name": "f", "parameters": {"properties": {"a": {"type": "string"}}}},
}


@pytest.mark.parametrize("given", [[TOOL], json.dumps([TOOL]), [json.dumps(TOOL)]])
def test_tools_may_be_objects_or_json(given):
    assert schemas(given) == [TOOL]
    assert schemas([]) is schemas("[]") is schemas("") is schemas(None) is None


def test_nulls_that_no_schema_has_are_left_out_and_defaults_stay():
    filled = json.loads(json.dumps(TOOL))
    filled["function"]["parameters"]["properties"] |= {"b": None}
    filled["function"]["parameters"]["properties"]["a"]["default"] = None
    assert schemas([filled]) == [TOOL]
    told = json.loads(json.dumps(TOOL))
    told["function"]["parameters"]["properties"]["a"]["default"] = None
    assert schemas([told]) == [told]


@pytest.mark.parametrize("given", ["[{", [3], {"a": 1}, '"x"'])
def test_other_tools_are_refused(given):
    with pytest.raises(BadRow, match="bad messages"):
        schemas(given)
