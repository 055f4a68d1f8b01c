"""Chat templates: how messages become text, and where the assistant speaks in it.

A template is the tokenizer's own, a built-in one (chat_templates.py), or a Jinja file. It runs in
transformers' sandbox. Training and use write the same prompt. Which characters are learnt is found by
rendering, for every template in the same way:

    start = len(render(messages before the turn, with the prompt that asks for it))     as a server sends it
    end   = after the first control token that follows the answer: the model learns to end its turn

If a template rewrites earlier turns (thinking blocks), a marker in place of the answer shows where the answer
is.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError

from graft.data.chat_templates import BUILTIN, TOKENS, jinja
from graft.data.mask import Rendered, tokenise
from graft.data.rows import BadRow, Row
from graft.errors import DataError, one_of

MARK = "\ue0f0graft\ue0f1"  # private-use characters: no text has them, no template changes them
OTHER_TEMPLATE = "change the row, or choose another data.template"

Messages = list[dict[str, Any]]


def source(tokenizer: Any, name: str | None = None) -> str:
    """Return the Jinja text of a template.

    name: a built-in one, or a Jinja file; None for the tokenizer's own, or `plain` if it has none.

    A built-in template writes the beginning-of-text token exactly if this tokenizer writes one by itself.
    Raises UsageError for an unknown name and DataError for a tokenizer without the tokens that the template
    needs.
    """
    if name is None and tokenizer.chat_template:
        by_name = tokenizer.chat_template
        if isinstance(by_name, str):
            return by_name
        return by_name.get("default") or next(iter(by_name.values()))
    name = name or "plain"
    if name not in BUILTIN and Path(name).is_file():
        return Path(name).read_text(encoding="utf-8")
    one_of("data.template (there is no such file)", name, BUILTIN)
    known = tokenizer.get_vocab()
    missing = [token for token in TOKENS.get(name, ()) if token not in known]
    if "eos_token" in BUILTIN[name] and tokenizer.eos_token is None:
        missing.append("an end-of-text token")
    if missing:
        raise DataError(
            f"The template {name} writes {', '.join(missing)}, which this tokenizer does not have",
            "a template whose control words are tokens",
            "use data.template=plain",
        )
    before, _ = affixes(tokenizer)
    return jinja(name, bos=bool(before) and before[0] == tokenizer.bos_token_id)


def affixes(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return the ids that this tokenizer puts before and after every text.

    For example ([BOS], []), ([CLS], [SEP]) or ([], [EOS]).
    """
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a", add_special_tokens=True)["input_ids"]
    for at in range(len(full) - len(bare) + 1):
        if full[at : at + len(bare)] == bare:
            return full[:at], full[at + len(bare) :]
    return [], []


def end_token(tokenizer: Any) -> int:
    """Return the id that ends a text. Raises DataError without one: the model would not learn to stop."""
    if tokenizer.eos_token_id is None:
        raise DataError(
            "The tokenizer has no end-of-text token",
            "one, so that the model learns to stop",
            "set eos_token in its tokenizer_config.json",
        )
    return tokenizer.eos_token_id


def prompt_ids(
    prompt: str | Messages,
    tokenizer: Any,
    *,
    template: str | None = None,
    tools: list[Any] | None = None,
    family: str = "causal",
) -> list[int]:
    """Return the ids with which a model is prompted: a text as it is, messages through the chat template.

    Training rows begin with exactly these ids, in every turn of a conversation.

    template: Jinja text, as `source` returns it; None is the tokenizer's own or `plain`.  tools: JSON schemas
    that the template shows.  family: "seq2seq" adds the ids that end an encoder's input.
    """
    before, after = affixes(tokenizer)
    if isinstance(prompt, str):
        rendered = Rendered(prompt, head=before)
    else:
        rendered = Template(tokenizer, template or source(tokenizer)).ask(prompt, tools)
    ((ids, _, _),) = tokenise([rendered], tokenizer)
    return ids + (after if family == "seq2seq" else [])


@dataclass(frozen=True)
class Turn:
    """Where one turn of the assistant stands in a rendered conversation.

    start, end: characters; end is after the token that ends the turn.  ended: whether there is such a token.
    altered: whether the template writes the turn differently from what the model would generate.
    """

    start: int
    end: int
    ended: bool
    altered: bool


class Template:
    """A Jinja chat template together with the tokenizer for which it writes."""

    def __init__(self, tokenizer: Any, text: str) -> None:
        self.tokenizer = tokenizer
        self.text = text

    def render(self, messages: Messages, tools: list[Any] | None = None, *, ask: bool = False) -> str:
        """Return the messages as text.  ask: end with the words after which the assistant speaks."""
        try:
            return self.tokenizer.apply_chat_template(
                messages, tools=tools, chat_template=self.text, add_generation_prompt=ask, tokenize=False
            )
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            detail = str(error).split("\n")[0] or type(error).__name__
            raise BadRow("template failed", detail, OTHER_TEMPLATE) from None

    @cached_property
    def controls(self) -> re.Pattern[str]:
        """The tokens that can end a turn: everything added to the vocabulary, special or not."""
        added = self.tokenizer.added_tokens_decoder.values()
        words = {str(token) for token in added} | {self.tokenizer.eos_token or ""}
        longest_first = sorted((word for word in words if word.strip()), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def learn(self, row: Row) -> Rendered:
        """Return a conversation as text, with the spans that are learnt.

        Raises BadRow if the template loses a turn.
        """
        messages, tools = row.value, row.tools
        text = self.render(messages, tools)
        for number, message in enumerate(messages, 1):
            role = message["role"]
            if role in ("user", "system", "developer") and message["content"].strip() not in text:
                raise BadRow("template failed", f"it does not write turn {number} ({role})", OTHER_TEMPLATE)
        speaks = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        turns = {i: self._turn(text, messages, i, tools) for i in speaks}
        learnt = [turn for i, turn in turns.items() if i >= row.first]
        starts = [turn.start for turn in turns.values()]
        spans = [(turn.start, turn.end) for turn in learnt]
        altered = sum(turn.altered for turn in learnt)
        if not speaks or turns[speaks[-1]].ended:
            return Rendered(text, starts, spans, altered=altered)
        # No token ends the last answer: then the text ends with it, and the model must stop there.
        eos = [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]
        return Rendered(text[: spans[-1][1]], starts, spans, tail=eos, altered=altered)

    def ask(self, messages: Messages, tools: list[Any] | None = None) -> Rendered:
        """Return a conversation as the prompt for its next answer; earlier answers are as in `learn`."""
        text = self.render(messages, tools, ask=True)
        speaks = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        return Rendered(text, [self._turn(text, messages, i, tools, asked=True).start for i in speaks])

    def _turn(self, text: str, messages: Messages, i: int, tools: Any, *, asked: bool = False) -> Turn:
        """Find turn i of the assistant in `text`.  asked: whether the text ends with the next prompt."""
        content = messages[i]["content"].strip()
        try:
            prompt = self.render(messages[:i], tools, ask=True) if i else ""
            through = text if i + 1 == len(messages) else self.render(messages[: i + 1], tools)
        except BadRow:  # a template that needs the whole conversation
            prompt, through = MARK, ""
        if text.startswith(through) and through.startswith(prompt):
            start, last = len(prompt), len(through)
            at = through.rfind(content, start) if content else -1
            answered = at + len(content) if at >= 0 else start
            unended = len(through.rstrip())
        else:
            start, answered = self._by_marker(text, messages, i, tools, asked)
            start = len(prompt) if text.startswith(prompt) and len(prompt) <= answered else start
            last = len(text)
            unended = answered
        controls = list(self.controls.finditer(text, answered, last))
        # An answer that is not in the text word for word (a tool call) may contain control tokens itself.
        # Then the last of them ends the turn.
        stop = controls[0 if answered > start else -1] if controls else None
        end = stop.end() if stop else unended
        if not text[start : stop.start() if stop else end].strip():
            raise BadRow("template failed", f"it writes nothing for turn {i + 1} (assistant)", OTHER_TEMPLATE)
        generated = through.startswith(text[:start]) and through.startswith(text[start:end], len(prompt))
        return Turn(start, end, ended=stop is not None, altered=not generated)

    def _by_marker(self, text: str, messages: Messages, i: int, tools: Any, asked: bool) -> tuple[int, int]:
        """Return where the content of turn i begins and ends, found by rendering a marker in its place."""
        marked = [*messages[:i], messages[i] | {"content": MARK}, *messages[i + 1 :]]
        rendered = self.render(marked, tools, ask=asked)
        head, _, tail = rendered.partition(MARK)
        if MARK not in rendered or MARK in tail or not (text.startswith(head) and text.endswith(tail)):
            detail = f"turn {i + 1} is not found in what it writes"
            raise BadRow("template failed", detail, "choose another data.template")
        return len(head), len(text) - len(tail)
