"""The process in which chat templates run: it answers what templates.py asks until nobody asks any more.

    request   a head {"number", "facts", "what", "rows": how many}, then the rows
    reply     for each row one of {"is": ...}, {"bad": [reason, detail, remedy]}, {"too much": ...}

Each is JSON behind 8 bytes of length. facts: JSON of a new template, see `Writer`. A template that takes too
long gets no reply: the process ends.
"""

import json
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import IO, Any

from graft.data.rows import BadRow, Row
from graft.data.sandbox import Sandbox, TooMuch
from graft.data.writer import Writer


def main() -> None:
    """Answer requests until there are none."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that asks hears it too, and decides
    requests, replies = sys.stdin.buffer, sys.stdout.buffer
    sandbox = Sandbox()
    writers: dict[int, Writer] = {}
    while head := read(requests):
        asked = json.loads(head)
        if asked["facts"]:
            writers[asked["number"]] = Writer(sandbox, **json.loads(asked["facts"]))
        for row in [read(requests) for _ in range(asked["rows"])]:
            send(replies, _answer(writers[asked["number"]], asked["what"], row))


def read(stream: IO[bytes]) -> bytes:
    """Return the next of what was sent; nothing at the end."""
    return stream.read(int.from_bytes(stream.read(8), "big"))


def send(stream: IO[bytes], *contents: bytes) -> None:
    """Send these, each behind its length."""
    stream.write(
        b"".join(part for content in contents for part in (len(content).to_bytes(8, "big"), content))
    )
    stream.flush()


def _answer(writer: Writer, what: str, row: bytes) -> bytes:
    try:
        facts = json.loads(row)
        turns = facts.get("messages") or facts.get("value") or []
        writer.sandbox.begin(len(row), len(turns))
        answer = {"is": ANSWERS[what](writer, facts)}
    except BadRow as bad:
        answer = {"bad": bad.args}
    except TooMuch as excess:
        answer = {"too much": str(excess)}
    except (MemoryError, RecursionError) as error:
        answer = {"too much": f"ends in a {type(error).__name__}"}
    return json.dumps(answer).encode()


# What may be asked of a template, by name.
ANSWERS: dict[str, Callable[[Writer, dict[str, Any]], Any]] = {
    "render": lambda writer, facts: writer.render(**facts),
    "around": lambda writer, _: writer.around(),
    "ask": lambda writer, facts: asdict(writer.ask(**facts)),
    "learn": lambda writer, facts: asdict(writer.learn(Row(**facts))),
    "question": lambda writer, facts: asdict(writer.question(Row(**facts))),
}
