"""Tools and their calls, in the forms in which files write them and in which chat templates want them.

The arguments of a call are an object, or the JSON text of one as OpenAI's interface sends it. Some templates
encode an object, some write a text as it is, and given the other form they encode it twice, write Python or
fail. `in_written_form` tries both with words that no row has, and keeps what comes out as JSON once.
"""

import json
from collections.abc import Callable
from typing import Any

from graft.data.rows import BadRow, json_in

Messages = list[dict[str, Any]]
NULLABLE = ("default", "const")  # keys of a JSON schema whose value may be null
NAME, WORD = "\ue0f2", "\ue0f3"  # an argument and its value, in private-use characters


def schemas(tools: Any) -> list[Any] | None:
    """Return tool schemas given as a list of objects or of JSON texts, or as one JSON text; None for none."""
    tools = _parsed(tools or None)
    if isinstance(tools, list):
        tools = [_parsed(tool) for tool in tools]
    if tools and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise BadRow("bad messages", "tools is not a list of objects", "write a list of JSON schemas")
    if not tools:
        return None
    # A null that no schema may have was put there by a table with typed columns: there, all of them were.
    return without_nulls(tools) if _has_null(tools) else tools


def _parsed(tools: Any) -> Any:
    if not isinstance(tools, str):
        return tools
    try:
        return json_in(tools)
    except ValueError:
        raise BadRow("bad messages", "tools is not JSON", "write a list of JSON schemas") from None


def _has_null(value: Any) -> bool:
    """Return whether a schema has a null under a key that cannot be null."""
    if isinstance(value, dict):
        return any((v is None and k not in NULLABLE) or _has_null(v) for k, v in value.items())
    return isinstance(value, list) and any(_has_null(v) for v in value)


def without_nulls(value: Any) -> Any:
    """Return a value without the keys, at any depth, whose value is null."""
    if isinstance(value, dict):
        return {k: without_nulls(v) for k, v in value.items() if v is not None}
    return [without_nulls(v) for v in value] if isinstance(value, list) else value


def calls_in(turn: dict[str, Any], number: int) -> list[Any] | None:
    """Take the tool calls out of turn `number`'s keys and return them; None for none.

    They may be a JSON text, or one `function_call` as OpenAI's interface had it before.
    """
    calls, single = turn.pop("tool_calls", None), turn.get("function_call")
    if isinstance(calls, str):
        try:
            calls = json_in(calls)
        except ValueError:
            detail = f"the tool_calls of turn {number} are not JSON"
            raise BadRow("bad messages", detail, "write a list of calls") from None
    if not calls and isinstance(single, dict):
        del turn["function_call"]
        calls = [{"type": "function", "function": single}]
    if calls and not (isinstance(calls, list) and all(isinstance(call, dict) for call in calls)):
        detail = f"the tool_calls of turn {number} are not a list of objects"
        raise BadRow("bad messages", detail, "write a list of calls")
    return calls or None


def function_of(call: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a call that holds name and arguments."""
    inner = call.get("function")
    return inner if isinstance(inner, dict) else call


def in_written_form(messages: Messages, render: Callable[[Messages], str]) -> tuple[Messages, bool]:
    """Return the messages with the arguments of all calls as the template writes them right.

    render: writes messages; it raises BadRow where the template fails. The form of the row is kept if it
    works, else the arguments become objects, else JSON texts. If none works they stay as they are, and the
    second that is returned is False: the template does not write them.
    """
    if not any(_object(call) is not None for message in messages for call in message.get("tool_calls", ())):
        return messages, True
    tried: list[Messages] = []
    for form in (_as_given, _as_object, _as_text):
        changed = _with_arguments(messages, form)
        if changed in tried:
            continue
        tried.append(changed)
        try:
            probe = render(_with_arguments(changed, _as_probe))
        except BadRow:
            continue
        if _written_once(probe):
            return changed, True
    return messages, False


def _written_once(text: str) -> bool:
    """Return whether all probes stand in a text, not encoded twice and not as Python writes an object."""
    before, *behind = text.split(WORD)
    if not behind:
        return False
    for ahead, after in zip([before, *behind], behind, strict=False):
        python = ahead.endswith("'") and after.startswith("'") and f"'{NAME}'" in ahead
        if python or ahead.endswith('\\"'):
            return False
    return True


def _with_arguments(messages: Messages, change: Callable[[dict[str, Any]], Any]) -> Messages:
    """Return the messages with the arguments of every call replaced by `change(call)`."""

    def changed(call: dict[str, Any]) -> dict[str, Any]:
        if _object(call) is None:
            return call
        inner = function_of(call) | {"arguments": change(call)}
        return inner if function_of(call) is call else call | {"function": inner}

    return [
        message | {"tool_calls": [changed(call) for call in message["tool_calls"]]}
        if message.get("tool_calls")
        else message
        for message in messages
    ]


def _object(call: dict[str, Any]) -> dict[str, Any] | None:
    """Return the arguments of a call as an object; None if they are neither one nor its JSON text."""
    arguments = function_of(call).get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json_in(arguments)
        except ValueError:
            return None
    return arguments if isinstance(arguments, dict) else None


def _as_given(call: dict[str, Any]) -> Any:
    return function_of(call)["arguments"]


def _as_object(call: dict[str, Any]) -> Any:
    return _object(call)


def _as_text(call: dict[str, Any]) -> Any:
    given = _as_given(call)
    return given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)


def _as_probe(call: dict[str, Any]) -> Any:
    probe = {NAME: WORD}
    return json.dumps(probe, ensure_ascii=False) if isinstance(_as_given(call), str) else probe
