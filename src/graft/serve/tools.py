"""Calls of tools in the text of an answer, in the forms that chat templates teach.

<tool_call>{"name": ..., "arguments": {...}}</tool_call>        Hermes, Qwen, the seedling's kind
[TOOL_CALLS][{"name": ..., "arguments": {...}}, ...]             Mistral
{"name": ..., "parameters": {...}}                               Llama 3, the whole answer
"""

import json
import re
import uuid
from typing import Any

TAGGED = re.compile(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|$)", re.DOTALL)
MARKED = re.compile(r"\[TOOL_CALLS\]\s*(\[.*\])", re.DOTALL)


def calls_in(text: str, names: set[str]) -> tuple[str, list[dict[str, Any]]]:
    """Return (the text without calls, the calls in OpenAI's form).

    names: of the tools that were offered; what names another one is left in the text.
    """
    for pattern in (TAGGED, MARKED):
        found = pattern.findall(text)
        parsed = [_call(call, names) for part in found for call in _objects(part)]
        if found and parsed and all(parsed):
            return pattern.sub("", text).strip(), [call for call in parsed if call]
    whole = text.strip().removeprefix("<|python_tag|>")
    if whole.startswith(("{", "[")):
        parsed = [_call(call, names) for call in _objects(whole)]
        if parsed and all(parsed):
            return "", [call for call in parsed if call]
    return text, []


def _objects(text: str) -> list[Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return [None]
    return value if isinstance(value, list) else [value]


def _call(call: Any, names: set[str]) -> dict[str, Any] | None:
    """Return a call in OpenAI's form; None for what is none of these tools."""
    if not isinstance(call, dict) or call.get("name") not in names:
        return None
    arguments = call.get("arguments", call.get("parameters", {}))
    given = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    function = {"name": call["name"], "arguments": given}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}
