"""What a chat template writes of a conversation, and what of it is learnt.

This is code of the process in which templates run (`template_worker`); templates.py has the other end.
"""

import re
from typing import Any

from graft.data.marks import Messages, Tools
from graft.data.mask import Rendered
from graft.data.places import OTHER
from graft.data.rows import BadRow, Row
from graft.data.sandbox import Sandbox
from graft.data.tool_calls import in_written_form
from graft.data.turns import OTHER_TEMPLATE, Talk

CALLS = "arguments of tool_calls"


class Writer:
    """A chat template with all that it needs of its tokenizer.

    text: of the template, or of several by name.  variables: special tokens by the names under which
    templates read them.  controls: texts of the tokens that can end a turn, the longest first.
    eos: text and id of the token that ends a text; (None, None) without one.
    """

    def __init__(
        self,
        sandbox: Sandbox,
        text: str | dict[str, str],
        variables: dict[str, Any],
        controls: list[str],
        eos: tuple[Any, Any],
    ) -> None:
        self.sandbox, self.text, self.variables = sandbox, text, variables
        self.eos, self.eos_id = eos
        self.controls = re.compile("|".join(map(re.escape, controls)) or r"(?!)")

    def render(self, messages: Messages, tools: Tools = None, ask: bool = False) -> str:
        """Return the messages as text.  ask: end with the words after which the assistant speaks."""
        told = [{k: v for k, v in message.items() if k != "weight"} for message in messages]
        if not told:
            raise BadRow("template failed", "there is no turn to write", OTHER_TEMPLATE)
        names = {**self.variables, "tools": tools, "documents": None, "add_generation_prompt": ask}
        return self.sandbox.write(self._chosen(tools), told, names)

    def _chosen(self, tools: Tools) -> str:
        """Return the template for these tools, as transformers chooses among several."""
        if isinstance(self.text, str):
            return self.text
        name = "tool_use" if tools is not None and "tool_use" in self.text else "default"
        if name not in self.text:
            detail = f"there is none called default, only {', '.join(self.text)}"
            raise BadRow("template failed", detail, OTHER_TEMPLATE)
        return self.text[name]

    def learn(self, row: Row) -> Rendered:
        """Return a conversation as text, with the spans that are learnt.

        Raises BadRow if the template loses a turn, and if no turn may be learnt.
        """
        talk, calls_written = self._talk(row.value, row.tools)
        unused = unused_of(talk, row.value, calls_written)
        muted = [message.get("weight") == 0 for message in row.value]
        learnt = {i: talk.turn(i) for i in talk.speaks if i >= row.first and not muted[i]}
        if not learnt:
            raise BadRow("nothing to learn", "weight 0 for every answer", "remove the row")
        starts = [learnt[i].start if i in learnt else talk.start(i) for i in talk.speaks]
        spans = [(turn.start, turn.end) for turn in learnt.values()]
        altered = sum(turn.altered for turn in learnt.values())
        facts: dict[str, Any] = {"altered": altered, "unused": tuple(sorted(unused))}
        last = learnt.get(talk.speaks[-1])
        if last is None or last.ended:
            return Rendered(talk.text, starts, spans, **facts)
        # No token ends the last answer: then the text ends with it, and the model must stop there.
        eos = [] if self.eos_id is None else [self.eos_id]
        return Rendered(talk.text[: last.end], starts, spans, tail=eos, **facts)

    def ask(self, messages: Messages, tools: Tools = None) -> Rendered:
        """Return a conversation as the prompt for its next answer; earlier answers are as in `learn`."""
        talk, _ = self._talk(messages, tools, ask=True)
        return Rendered(talk.text, [talk.start(i) for i in talk.speaks])

    def question(self, row: Row) -> Rendered:
        """Return the prompt for the last answer of a row, for an encoder-decoder.

        Raises BadRow if the template loses a turn, and for an answer without text or with weight 0.
        """
        *before, last = row.value
        if last.get("weight") == 0:
            raise BadRow("nothing to learn", "the answer has weight 0", "remove the row")
        if not last["content"].strip():
            raise BadRow("no answer", "the answer has no text", "fill it or remove the row")
        talk, calls_written = self._talk(before, row.tools, ask=True)
        unused = unused_of(talk, before, calls_written)
        unused |= {f"{key} of the answer" for key in last if key not in ("role", "content", "weight")}
        starts = [talk.start(i) for i in talk.speaks]
        return Rendered(talk.text, starts, unused=tuple(sorted(unused)))

    def around(self) -> tuple[str, str, str]:
        """What stands behind a question that is asked, and that is answered; and the token behind an answer.

        Empty where there is none, or where nothing follows a question when it is asked.
        """
        user, answer = ({"role": role, "content": OTHER} for role in ("user", "assistant"))
        try:
            asking = self.render([user], ask=True).partition(OTHER)[2].strip()
            told = self.render([user]).partition(OTHER)[2].strip()
            _, between, behind = self.render([user, answer]).split(OTHER)
        except (BadRow, ValueError):  # ValueError: it writes one of them twice, or not at all
            return "", "", ""
        control = self.controls.search(behind)
        return asking if asking != told else "", between.strip(), control.group() if control else ""

    def _talk(self, messages: Messages, tools: Tools, *, ask: bool = False) -> tuple[Talk, bool]:
        """Return the conversation as it is written, and whether the arguments of its calls are."""
        told, works = in_written_form(messages, lambda told: self.render(told, tools))
        return Talk(told, tools, self.render, self.controls, self.eos, ask), works


def unused_of(talk: Talk, messages: Messages, calls_written: bool) -> set[str]:
    """Return the names of what a conversation says and the template does not write, see `Talk.unused`."""
    asking = {f"weight 1 of a {m['role']} turn" for m in messages if m.get("weight") == 1}
    return talk.unused() | asking | (set() if calls_written else {CALLS})
