"""Trees of messages, as Open Assistant collected them: many replies to one message, ranked by people.

    {"message_id", "parent_id", "role", "text", "rank", "deleted", "review_result", "lang"}    a message a row
    {"prompt": {..., "replies": [{..., "replies": [...]}]}}                                     a tree a row

Roles are prompter and assistant, rank 0 is the best reply. A tree gives rankings (every question with two or
more ranked answers) and conversations (its paths). Köpf et al. 2023, arXiv 2304.07327; Guanaco was tuned on
the best reply at each level (Dettmers et al. 2023, arXiv 2305.14314).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from graft.data.columns import as_number
from graft.data.rows import Record, Reject, Row, compared

PATHS = ("best", "all", "each")
ROLES = {"prompter": "user", "user": "user", "human": "user", "assistant": "assistant"}


@dataclass(eq=False)
class Message:
    """One message of a tree.  before: the one that it answers.  rank: 0 is the best; None without one."""

    source: str
    name: str
    role: str
    content: str
    rank: float | None
    before: "Message | None" = None
    replies: list["Message"] = field(default_factory=list)

    def path(self) -> list["Message"]:
        """Return the messages from the root of the tree to this one."""
        path = [self]
        while (before := path[-1].before) is not None:
            path.append(before)
        return path[::-1]

    def best(self) -> "Message | None":
        """Return the best reply: the first of the lowest rank, or the first of all if none has a rank."""
        ranked = [reply for reply in self.replies if reply.rank is not None]
        return min(ranked, key=lambda reply: reply.rank or 0, default=next(iter(self.replies), None))


Left = dict[Message, Reject]  # messages that are not used, and why


def is_tree(fields: Mapping[str, Any]) -> bool:
    """Return whether a row is a message of a tree, or a whole tree."""
    return _root_of(fields) is not None or {"message_id", "role", "text"} <= fields.keys()


def plant(records: Sequence[Record], lang: str | None = None) -> tuple[list[Message], Left]:
    """Return the messages of all trees, and those that cannot be used: with them goes all that follows them.

    lang: the language of the messages that are wanted; None: all.
    """
    by_name: dict[str, Message] = {}
    parents: dict[Message, str | None] = {}
    left: Left = {}
    for source, fields, above in _messages(records):
        text, role = fields.get("text"), ROLES.get(str(fields.get("role")), "")
        message = Message(
            source, str(fields.get("message_id")), role, text if isinstance(text, str) else "", _rank(fields)
        )
        if trouble := _trouble(message, fields, lang):
            left[message] = _reject(message, *trouble)
        elif message.name in by_name:
            left[message] = _reject(message, "repeated message", "is there twice")
        else:
            parent = fields.get("parent_id") or above
            by_name[message.name], parents[message] = message, parent and str(parent)
    for message, parent in parents.items():
        if parent in by_name:
            message.before = by_name[parent]
            message.before.replies.append(message)
    messages = list(_below([message for message, parent in parents.items() if parent is None]))
    reached = set(messages)
    for message, parent in parents.items():
        if message not in reached:
            left[message] = _reject(message, "nothing before it", f"answers {parent}, which is not used")
    return messages, left


def rankings(messages: Sequence[Message]) -> tuple[list[Row], Left]:
    """Return every question with two or more ranked answers as a ranking, and the messages of none.

    Of answers that say the same the best one stays.
    """
    rows: list[Row] = []
    used: set[Message] = set()
    left: Left = {}
    for message in messages:
        ranked = sorted((r for r in message.replies if r.rank is not None), key=lambda reply: reply.rank or 0)
        first = {reply.content: reply for reply in reversed(ranked)}
        answers = [reply for reply in ranked if first[reply.content] is reply]
        scores = tuple(-(reply.rank or 0) for reply in answers)
        if message.role != "user" or not compared(scores, len(answers)):
            continue
        used.update(message.path(), answers)
        twice = [reply for reply in ranked if reply not in answers]
        left |= {
            reply: _reject(reply, "identical answers", "says the same as a better one") for reply in twice
        }
        said = tuple(_turns([reply]) for reply in answers)
        only_order = len(set(scores)) == len(scores)
        value = _turns(message.path()), said, None if only_order else scores
        rows.append(Row(message.source, "ranking", value))
    for message in messages:
        if message not in used and message not in left:
            left[message] = _reject(message, "compared with none", "is in no ranking of two or more answers")
    return rows, left


def conversations(messages: Sequence[Message], paths: str = "best") -> tuple[list[Row], Left]:
    """Return paths through the trees as conversations that end with the assistant, and the messages of none.

    paths: "best", one for each tree, with the best reply at each level; "all", one for each last answer;
    "each", every question with its best answer, which alone is learnt.
    """
    if paths == "best":
        ends = [_last_answer(root) for root in messages if root.before is None]
    elif paths == "all":
        ends = [m for m in messages if m.role == "assistant" and not any(r.replies for r in m.replies)]
    else:
        ends = [message.best() for message in messages if message.role == "user"]
    rows = []
    used: set[Message] = set()
    for end in ends:
        if end is None or end.role != "assistant":
            continue
        path = end.path()
        used.update(path)
        first = len(path) - 1 if paths == "each" else 0
        rows.append(Row(end.source, "chat", _turns(path), first=first))
    unused = (message for message in messages if message not in used)
    return rows, {m: _reject(m, "not on a path", f"is on no path of paths={paths}") for m in unused}


def _last_answer(root: Message) -> Message | None:
    """Return the last answer on the way along the best replies; None if there is none."""
    last, message = None, root
    while True:
        if message.role == "assistant":
            last = message
        best = message.best()
        if best is None:
            return last
        message = best


def _messages(records: Sequence[Record]) -> Iterator[tuple[str, Mapping[str, Any], str | None]]:
    """Yield the place of each message, its fields, and the name of the one in which it stands as a reply."""
    for record in records:
        waiting: list[tuple[Any, str | None]] = [(_root_of(record.fields) or record.fields, None)]
        while waiting:
            given, above = waiting.pop()
            fields = given if isinstance(given, dict) else {}
            yield record.source, fields, above
            replies = fields.get("replies")
            name = str(fields.get("message_id"))
            waiting += [(reply, name) for reply in reversed(replies if isinstance(replies, list) else [])]


def _root_of(fields: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the first message of a row that is a whole tree; None for any other row."""
    prompt = fields.get("prompt")
    if isinstance(prompt, dict) and "text" in prompt and isinstance(prompt.get("replies", []), list):
        return prompt
    return dict(fields) if isinstance(fields.get("replies"), list) and "text" in fields else None


def _below(roots: Sequence[Message]) -> Iterator[Message]:
    """Yield messages with all that follows them, a tree after the other."""
    waiting = list(reversed(roots))
    while waiting:
        message = waiting.pop()
        yield message
        waiting += reversed(message.replies)


def _rank(fields: Mapping[str, Any]) -> float | None:
    return as_number(fields.get("rank"))


def _trouble(message: Message, fields: Mapping[str, Any], lang: str | None) -> tuple[str, str] | None:
    """Return why a message cannot be used, as a reason and a detail; None if it can."""
    if not message.role:
        return "bad role", f"has the role {fields.get('role')!r:.40}"
    if not message.content.strip():
        return "empty message", "has no text"
    if fields.get("deleted"):
        return "deleted", "was deleted"
    if fields.get("review_result") is False:
        return "failed review", "did not pass its review"
    if lang is not None and fields.get("lang") != lang:
        return "other language", f"is in {fields.get('lang')!r:.40}"
    return None


def _reject(message: Message, reason: str, detail: str) -> Reject:
    return Reject(message.source, reason, f"message {message.name} {detail}", "nothing, if that is meant")


def _turns(path: Sequence[Message]) -> list[dict[str, Any]]:
    return [{"role": message.role, "content": message.content} for message in path]
