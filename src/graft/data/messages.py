"""Conversations as files write them become lists of messages that a chat template can write.

[system] user assistant user assistant ...      tool results stand between two assistant turns
"""

import json
from collections.abc import Mapping
from typing import Any

from graft.data.rows import BadRow

ROLES = ("system", "developer", "user", "assistant", "tool")
# Their speakers -> our roles.
SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "system": "system",
    "observation": "tool",
    "tool": "tool",
}
# The roles that may follow a role; None is the beginning.
FOLLOWS: dict[str | None, tuple[str, ...]] = {
    None: ("system", "developer", "user"),
    "system": ("user",),
    "developer": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}


def messages_of(turns: Any, role_key: str, content_key: str) -> list[dict[str, Any]]:
    """Return turns as messages with our roles and with text as content; their order is not checked.

    role_key, content_key: what the file calls the two. Other keys (tool_calls, reasoning_content, ...) are
    kept.
    """
    if not isinstance(turns, list) or not turns:
        detail = "no list of turns" if turns else "the list of turns is empty"
        raise BadRow("bad messages", detail, "write the turns")
    messages = []
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict):
            detail = f"turn {number} is {type(turn).__name__}"
            raise BadRow("bad messages", detail, f"write {role_key}, {content_key}")
        speaker = turn.get(role_key)
        role = SPEAKERS.get(speaker, speaker) if isinstance(speaker, str) else speaker
        if role not in ROLES:
            detail = f"turn {number} has {role_key} {speaker!r}"
            raise BadRow("bad role", detail, f"write one of {', '.join(ROLES)}")
        rest = {k: v for k, v in turn.items() if k not in (role_key, content_key) and v is not None}
        content = _content(turn.get(content_key), role, number, calls_tools=bool(rest.get("tool_calls")))
        messages.append({"role": role, "content": content} | rest)
    return messages


def in_order(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the messages if their roles follow each other as they must; otherwise raise BadRow."""
    before = None
    for number, message in enumerate(messages, 1):
        role = message["role"]
        if role not in FOLLOWS[before]:
            detail = f"turn {number} is {role} after {before or 'the beginning'}"
            raise BadRow("role order", detail, f"put {' or '.join(FOLLOWS[before])} there")
        before = role
    if before != "assistant":
        raise BadRow("no answer", f"the conversation ends with {before}", "end it with an assistant turn")
    return messages


def tools_of(fields: Mapping[str, Any]) -> list[Any] | None:
    """Return a row's tool schemas, which may be a list or the JSON text of one; None if there are none."""
    tools = fields.get("tools") or None
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) or None
        except ValueError:
            raise BadRow("bad messages", "tools is not JSON", "write a list of JSON schemas") from None
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise BadRow("bad messages", "tools is not a list of objects", "write a list of JSON schemas")
    return tools


def _content(content: Any, role: str, number: int, *, calls_tools: bool) -> str:
    """Return the text of turn `number`. Only tools, and assistants that call one, may leave it empty."""
    if isinstance(content, list):  # a list of parts, as OpenAI's interface has it
        if any(not isinstance(part, dict) or not isinstance(part.get("text"), str) for part in content):
            detail = f"turn {number} has parts that are not text"
            raise BadRow("unsupported content", detail, "remove images and audio")
        content = "".join(part["text"] for part in content)
    if content is not None and not isinstance(content, str):
        raise BadRow("not text", f"turn {number} is {type(content).__name__}", "write it as one string")
    text = content or ""
    if not text.strip() and not (calls_tools or role == "tool"):
        reason = "no answer" if role == "assistant" else "no prompt"
        raise BadRow(reason, f"turn {number} ({role}) is empty", "fill it or remove the row")
    return text
