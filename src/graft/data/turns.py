"""Where the assistant speaks in a rendered conversation.

    start = len(render(messages before the turn, with the prompt that asks for it))     as a server sends it
    end   = after the first control token behind its words: the model learns to end its turn

Where the words are, places.py tells. A template may write a turn differently once others follow: it drops the
thoughts, or ends the last turn only. Then the end is what it writes when the turn is the last, if that stands
in the conversation as well; if it does not, the turn has no end there, and none is learnt.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

from graft.data.marks import Messages, Tools, Writing
from graft.data.messages import ROLES
from graft.data.places import OTHER, Places, locate
from graft.data.rows import BadRow

OTHER_TEMPLATE = "change the row, or choose another data.template"
# render(messages, tools, ask): the text; ask: it ends with the words after which the assistant speaks.
Render = Callable[[Messages, Tools, bool], str]


@dataclass(frozen=True)
class Turn:
    """Where one turn of the assistant stands in a rendered conversation.

    start, end: characters; end is after the token that ends the turn.  ended: whether there is such a token.
    altered: whether the template writes the turn differently from what the model would generate, or leaves
    out something that the turn says.
    """

    start: int
    end: int
    ended: bool
    altered: bool


@dataclass
class Talk:
    """A conversation and its text.

    render: writes a conversation; raises BadRow where the template fails.
    controls: matches the tokens that can end a turn.  eos: the one that ends a text, if there is one.
    asked: the text ends with the prompt for an answer.
    """

    messages: Messages
    tools: Tools
    render: Render
    controls: re.Pattern[str]
    eos: str | None = None
    asked: bool = False

    def __post_init__(self) -> None:
        self.text = self.render(self.messages, self.tools, self.asked)

    @cached_property
    def places(self) -> Places:
        """Where the text has everything that the conversation says."""
        return self._located(self.messages, self.text, ask=self.asked)

    @property
    def speaks(self) -> list[int]:
        """The turns of the assistant."""
        return [i for i, message in enumerate(self.messages) if message["role"] == "assistant"]

    def unused(self) -> set[str]:
        """Return the names of what the conversation says and the text does not.

        Raises BadRow for a turn that is not written, and for a role that the template does not know.
        """
        places, names = self.places, self._untold_roles()
        for part in sorted(places.lost | places.partly):
            if part.key == "tools":
                names.add("tools")
                continue
            role = self.messages[part.turn]["role"]
            silent = places.of_turn(part.turn) is None and all(p.turn != part.turn for p in places.unplaced)
            if role == "assistant" and silent:
                raise _nothing(part.turn)
            if role != "assistant" and part.key == "content" and part in places.lost:
                detail = f"it does not write turn {part.turn + 1} ({role})"
                raise BadRow("template failed", detail, OTHER_TEMPLATE)
            what = part.key if part in places.lost else f"part of {part.key}"
            names.add(f"{what} of {'an' if role[0] in 'aeio' else 'a'} {role} turn")
        return names

    def _untold_roles(self) -> set[str]:
        """Return the names of roles that the text takes for another one."""
        names = set()
        for i, message in enumerate(self.messages):
            role = message["role"]
            if role in ("system", "user", "assistant") or f"the role {role}" in names:
                continue
            if not any(self._same_as(role, other) for other in ("user", "assistant")):
                continue
            if role not in ROLES:
                detail = f"turn {i + 1} has the role {role!r}, which the template does not know"
                raise BadRow("bad role", detail, f"write one of {', '.join(ROLES)}")
            names.add(f"the role {role}")
        return names

    def _same_as(self, role: str, other: str) -> bool:
        """Return whether the template writes the turns of a role as it writes those of another."""
        changed = [m | {"role": other} if m["role"] == role else m for m in self.messages]
        try:
            return self.render(changed, self.tools, self.asked) == self.text
        except BadRow:
            return False

    def start(self, i: int) -> int:
        """Return where turn i of the assistant begins: behind the prompt with which a server asks for it."""
        prompt = self._prompt(i)
        if prompt is not None and self.text.startswith(prompt):
            return len(prompt)
        words = self._words(i)[0]
        header = self._header if i == 0 else ""
        at = self.text.rfind(header, 0, words) if header else -1
        return at + len(header) if at >= 0 else words

    def turn(self, i: int) -> Turn:
        """Return where turn i of the assistant stands. Raises BadRow if it cannot be told."""
        text = self.text
        start, (_, last) = self.start(i), self._words(i)
        through = self._through(i)
        prompt = self._prompt(i)
        altered = i > 0 and (prompt is None or not text.startswith(prompt))
        altered = altered or any(p.turn == i for p in self.places.lost | self.places.partly)
        if through is None:  # a template that needs the whole conversation
            following = [a for part, (a, _) in self.places.found.items() if part.turn > i and a >= last]
            length, ended = self._ending(i, text[last : min(following, default=len(text))], self.places)
            return self._checked(i, Turn(start, last + length, ended, altered))
        if text.startswith(through) and last <= len(through):
            length, ended = self._ending(i, through[last:], self.places)
            return self._checked(i, Turn(start, last + length, ended, altered))
        alone = self._located(self.messages[: i + 1], through, turn=i)
        words = alone.of_turn(i)
        length, ended, end = 0, False, last
        if words is not None:
            length, ended = self._ending(i, through[words[1] :], alone)
            as_last = through[words[1] : words[1] + length]
            if text.startswith(as_last, last):
                end = last + length
            else:
                ended, altered = False, True
        written = text[start:end]
        altered = altered or not (through.startswith(text[:start]) and through.startswith(written, start))
        return self._checked(i, Turn(start, end, ended, altered))

    def _checked(self, i: int, turn: Turn) -> Turn:
        """Return the turn, with the end that other turns bring. Raises BadRow if it holds words of theirs."""
        if not turn.ended and self.eos:  # some templates write it before the next question
            blanks = len(self.text[turn.end :]) - len(self.text[turn.end :].lstrip())
            if self.text.startswith(self.eos, turn.end + blanks):
                turn = replace(turn, end=turn.end + blanks + len(self.eos), ended=True)
        if not self.text[turn.start : turn.end].strip() or turn.start >= self._words(i)[1]:
            raise _nothing(i)
        for part, (a, b) in self.places.found.items():
            if part.turn != i and a < turn.end and b > turn.start:
                detail = f"it writes turn {i + 1} around other words"
                raise BadRow("template failed", detail, OTHER_TEMPLATE)
        return turn

    def _words(self, i: int) -> tuple[int, int]:
        """Return where the words of turn i begin and end. Raises BadRow if that cannot be told."""
        words = self.places.of_turn(i)
        if words is not None:
            return words
        if any(part.turn == i for part in self.places.unplaced):
            detail = f"it cannot be told where it writes turn {i + 1} (assistant)"
            raise BadRow("template failed", detail, OTHER_TEMPLATE)
        raise _nothing(i)

    def _located(
        self, messages: Messages, text: str, *, ask: bool = False, turn: int | None = None
    ) -> Places:
        """Return the places of messages in their text, or those of one turn."""
        writing = Writing(lambda told, tools: self.render(told, tools, ask), messages, self.tools, text)
        return locate(writing, turn)

    def _prompt(self, i: int) -> str | None:
        """Return the prompt for turn i; None where the template writes no such prompt."""
        if i in self._prompts:
            return self._prompts[i]
        try:
            prompt = self.render(self.messages[:i], self.tools, True) if i else None
        except BadRow:
            prompt = None
        self._prompts[i] = prompt
        return prompt

    @cached_property
    def _prompts(self) -> dict[int, str | None]:
        return {}

    def _through(self, i: int) -> str | None:
        """Return the conversation up to turn i as text; None where the template does not write it."""
        if i + 1 == len(self.messages) and not self.asked:
            return self.text
        try:
            return self.render(self.messages[: i + 1], self.tools, False)
        except BadRow:
            return None

    @cached_property
    def _header(self) -> str:
        """What stands before every answer: the words by which a prompt asks."""
        user: Messages = [{"role": "user", "content": OTHER}]
        try:
            asked, told = (self.render(user, None, ask) for ask in (True, False))
        except BadRow:
            return ""
        return asked.removeprefix(told) if asked.startswith(told) else ""

    def _ending(self, i: int, tail: str, places: Places) -> tuple[int, bool]:
        """Return how much of `tail`, which follows the words of turn i, ends the turn; whether by a token.

        Behind a content the first control token ends the turn. Behind anything else there may be others
        before it, such as </tool_call>: what the template writes behind a plain content tells which it is.
        """
        controls = list(self.controls.finditer(tail))
        if not controls:
            return len(tail.rstrip()), False
        if places.ends_with_content(i):
            return controls[0].end(), True
        plain = self._behind_plain_words(i)
        if plain is None or not tail.endswith(plain):
            return controls[-1].end(), True
        end = self.controls.search(plain)
        return (len(tail) - len(plain) + end.end(), True) if end else (len(tail.rstrip()), False)

    def _behind_plain_words(self, i: int) -> str | None:
        """Return what the template writes behind turn i if it only says something; None if it fails."""
        plain = [*self.messages[:i], {"role": "assistant", "content": OTHER}]
        try:
            _, found, behind = self.render(plain, self.tools, False).rpartition(OTHER)
        except BadRow:
            return None
        return behind if found else None


def _nothing(i: int) -> BadRow:
    return BadRow("template failed", f"it writes nothing for turn {i + 1} (assistant)", OTHER_TEMPLATE)
