import json

import pytest

from graft.serve.tools import calls_in

CALL = {"name": "weather", "arguments": {"city": "Oslo"}}
FORMS = {
    "hermes": f"I look.\n<tool_call>\n{json.dumps(CALL)}\n</tool_call>",
    "two of hermes": f"<tool_call>{json.dumps(CALL)}</tool_call>\n<tool_call>{json.dumps(CALL)}</tool_call>",
    "mistral": f"[TOOL_CALLS][{json.dumps(CALL)}]",
    "llama": json.dumps({"name": "weather", "parameters": {"city": "Oslo"}}),
    "llama with its tag": "<|python_tag|>" + json.dumps({"name": "weather", "parameters": {"city": "Oslo"}}),
    "arguments as text": json.dumps({"name": "weather", "arguments": '{"city": "Oslo"}'}),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_call_is_found_in_the_forms_of_chat_templates(form):
    text, calls = calls_in(FORMS[form], {"weather"})
    assert len(calls) == (2 if form.startswith("two") else 1) and text == (
        "I look." if form == "hermes" else ""
    )
    for call in calls:
        assert call["type"] == "function" and call["function"]["name"] == "weather"
        assert json.loads(call["function"]["arguments"]) == {"city": "Oslo"}
    assert len({call["id"] for call in calls}) == len(calls)


@pytest.mark.parametrize(
    "text", ["", "Oslo", '{"a": 1}', '{"name": "other"}', "<tool_call>{broken</tool_call>", "[" * 5000, "[]"]
)
def test_what_is_no_call_stays_text(text):
    assert calls_in(text, {"weather"}) == (text, [])
