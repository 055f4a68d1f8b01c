"""Conversations as files write them become lists of messages that a chat template can write.

Roles may follow each other in any order that the chat template takes; the assistant has the last word. A role
that we do not know is kept, for the template to judge. Other keys of a turn are kept too: tool calls,
reasoning, names. `weight: 0` is left of the keys that say whether a turn is learnt.
"""

import difflib
from collections.abc import Mapping
from typing import Any

from graft.data.rows import BadRow
from graft.data.tool_calls import calls_in, schemas, without_nulls

ROLES = ("system", "developer", "user", "assistant", "tool")
# Their speakers -> our roles.
SPEAKERS = {role: role for role in ROLES} | {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
    "ai": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "function": "tool",
    "function_response": "tool",
    "tool_response": "tool",
}
ALIKE = 0.75  # an unknown role that is so similar to a known one is misspelt
WEIGHTS = ("weight", "train", "loss")  # what OpenAI and others call the key that takes a turn out of the loss
REASONING = ("reasoning_content", "reasoning", "thinking")


def messages_of(turns: Any, role_key: str, content_key: str) -> list[dict[str, Any]]:
    """Return turns as messages with our roles and with text as content; their order is not checked.

    role_key, content_key: what the file calls the two. An empty system turn means none and is left out.
    """
    if not isinstance(turns, list) or not turns:
        detail = "no list of turns" if turns else "the list of turns is empty"
        raise BadRow("bad messages", detail, "write the turns")
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict):
            detail = f"turn {number} is {type(turn).__name__}"
            raise BadRow("bad messages", detail, f"write {role_key}, {content_key}")
    filled = _from_a_table(turns, content_key)
    messages = [_message(turn, number, role_key, content_key, filled) for number, turn in enumerate(turns, 1)]
    return [message for message in messages if message is not None]


def with_answer(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the messages if the assistant has the last word; otherwise raise BadRow."""
    last = messages[-1]["role"] if messages else "nothing"
    if last != "assistant":
        raise BadRow("no answer", f"the conversation ends with {last}", "end it with an assistant turn")
    return messages


def tools_of(fields: Mapping[str, Any]) -> list[Any] | None:
    """Return a row's tool schemas, which may be a list or the JSON text of one; None if there are none."""
    return schemas(fields.get("tools"))


def _from_a_table(turns: list[dict[str, Any]], content_key: str) -> bool:
    """Return whether a table with typed columns (Parquet, a data set of the hub) wrote these turns.

    There every turn has every key, null where it has none, also inside of tool calls. A null content proves
    nothing: that is how a turn that only calls a tool is written by hand.
    """
    alike = all(turn.keys() == turns[0].keys() for turn in turns)
    return alike and any(value is None for turn in turns for key, value in turn.items() if key != content_key)


def _message(
    turn: dict[str, Any], number: int, role_key: str, content_key: str, filled: bool
) -> dict[str, Any] | None:
    """Return turn `number` as a message; None for an empty system turn.

    filled: nulls inside of its values stand for nothing, see `_from_a_table`.
    """
    role = _role(turn.get(role_key), number, role_key)
    rest = {k: v for k, v in turn.items() if k not in (role_key, content_key) and v is not None}
    if filled:
        rest = without_nulls(rest)
    learnt = _learnt(rest, number)
    calls = calls_in(rest, number)
    silent = bool(calls) or role == "tool" or any(rest.get(key) for key in REASONING)
    content = _content(turn.get(content_key), number)
    if not content.strip() and not silent:
        if role in ("system", "developer"):
            return None
        reason = "no answer" if role == "assistant" else "no prompt"
        raise BadRow(reason, f"turn {number} ({role}) is empty", "fill it or remove the row")
    message = {"role": role, "content": content} | rest
    if calls:
        message["tool_calls"] = calls
    if learnt is not None and learnt != (role == "assistant"):
        message["weight"] = int(learnt)  # only where it says something else than the role
    return message


def _role(speaker: Any, number: int, role_key: str) -> str:
    """Return the role of turn `number`. Raises BadRow if there is none, and for one that is misspelt."""
    detail = f"turn {number} has {role_key} {speaker!r}"
    if not isinstance(speaker, str) or not speaker.strip():
        raise BadRow("bad role", detail, f"write one of {', '.join(ROLES)}")
    known = SPEAKERS.get(speaker.strip().lower())
    if known is not None:
        return known
    close = difflib.get_close_matches(speaker.lower(), SPEAKERS, n=1, cutoff=ALIKE)
    if close:
        raise BadRow("bad role", detail, f"did you mean {close[0]!r}?")
    return speaker


def _learnt(rest: dict[str, Any], number: int) -> bool | None:
    """Take the weight of turn `number` out of its other keys; return whether it is learnt, None if unsaid."""
    said: set[bool] = set()
    for key in WEIGHTS:
        if key not in rest:
            continue
        value = rest.pop(key)
        word = str(value).strip().lower()
        if word not in ("0", "0.0", "false", "1", "1.0", "true"):
            detail = f"turn {number} has {key} {value!r:.40}"
            raise BadRow("bad weight", detail, "write 1 (learnt) or 0 (not learnt)")
        said.add(word in ("1", "1.0", "true"))
    if len(said) > 1:
        detail = f"turn {number} is learnt by one key and not by another"
        raise BadRow("bad weight", detail, f"write one of {', '.join(WEIGHTS)}")
    return said.pop() if said else None


def _content(content: Any, number: int) -> str:
    """Return the text of turn `number`, "" for none."""
    if isinstance(content, list):  # a list of parts, as OpenAI's interface has it
        if any(not isinstance(part, dict) or not isinstance(part.get("text"), str) for part in content):
            detail = f"turn {number} has parts that are not text"
            raise BadRow("unsupported content", detail, "remove images and audio")
        content = "".join(part["text"] for part in content)
    if content is not None and not isinstance(content, str):
        raise BadRow("not text", f"turn {number} is {type(content).__name__}", "write it as one string")
    return content or ""
