"""Chat templates: how messages become text, where the assistant speaks in it, and the same prompt for training and use.

A template is the tokenizer's own, a built-in one (builtin.py), or a Jinja file. It runs in transformers' sandbox. Which
characters are learnt is found by rendering, for every template alike:

    start = len(render(messages before the turn, with the prompt that asks for it))      what a server would send
    end   = behind the first control token after the answer: the token that ends the turn IS learnt

Where a template rewrites earlier turns (thinking blocks), the answer is found by putting a marker in its place.
"""

import re
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError

from graft.data.chat_templates import BUILTIN, TOKENS, jinja
from graft.data.mask import Rendered, tokenise
from graft.data.rows import BadRow, Row
from graft.errors import DataError, UsageError, nearest

MARK = "\ue0f0graft\ue0f1"  # private-use characters: in no text, changed by no template


def source(tokenizer: Any, name: str | None = None) -> str:
    """The Jinja text of a template: the tokenizer's own (None; `plain` where it has none), a built-in name, or a file.

    Built-in templates write the beginning-of-text token exactly where this tokenizer writes one by itself.
    Raises UsageError for an unknown name and DataError for a tokenizer without the tokens the template needs.
    """
    if name is None and tokenizer.chat_template:
        own = tokenizer.chat_template
        return own if isinstance(own, str) else own.get("default") or next(iter(own.values()))
    name = name or "plain"
    if name not in BUILTIN:
        if Path(name).is_file():
            return Path(name).read_text(encoding="utf-8")
        raise UsageError(f"data.template is {name!r}", f"a Jinja file or one of {', '.join(BUILTIN)}",
                         f"did you mean {nearest(name, BUILTIN, 1)[0]}?")  # fmt: skip
    known = tokenizer.get_vocab()
    missing = [token for token in TOKENS.get(name, ()) if token not in known]
    if "eos_token" in BUILTIN[name] and tokenizer.eos_token is None:
        missing.append("an end-of-text token")
    if missing:
        raise DataError(f"The template {name} writes {', '.join(missing)}, which this tokenizer does not have",
                        "a template whose control words are tokens", "use data.template=plain")  # fmt: skip
    before, _ = affixes(tokenizer)
    return jinja(name, bos=bool(before) and before[0] == tokenizer.bos_token_id)


def affixes(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The ids this tokenizer puts before and after a text by itself: ([BOS], []), ([CLS], [SEP]), ([], [EOS]), ..."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a", add_special_tokens=True)["input_ids"]
    for at in range(len(full) - len(bare) + 1):
        if full[at : at + len(bare)] == bare:
            return full[:at], full[at + len(bare) :]
    return [], []


def end_token(tokenizer: Any) -> int:
    """Return the id that ends a text. Raises DataError where there is none: the model would never learn to stop."""
    if tokenizer.eos_token_id is None:
        raise DataError(
            "The tokenizer has no end-of-text token",
            "one, so that the model learns to stop",
            "set eos_token in its tokenizer_config.json",
        )
    return tokenizer.eos_token_id


def prompt_ids(
    prompt: str | list[dict[str, Any]], tokenizer: Any, *, template: str | None = None, tools: list[Any] | None = None,
    family: str = "causal",
) -> list[int]:  # fmt: skip
    """The ids a model is asked with: a text as it is, or messages through the chat template.

    Training rows begin with exactly these ids, in every turn of a conversation.  template: Jinja text, as `source`
    gives it; None is the tokenizer's own or `plain`.  family "seq2seq" adds the ids that end an encoder's input.
    """
    before, after = affixes(tokenizer)
    if isinstance(prompt, str):
        rendered = Rendered(prompt, head=before)
    else:
        rendered = Template(tokenizer, template or source(tokenizer)).ask(prompt, tools)
    ((ids, _, _),) = tokenise([rendered], tokenizer)
    return ids + (after if family == "seq2seq" else [])


class Template:
    """A Jinja chat template together with the tokenizer that it writes for."""

    def __init__(self, tokenizer: Any, text: str) -> None:
        self.tokenizer, self.text = tokenizer, text

    def render(
        self, messages: list[dict[str, Any]], tools: list[Any] | None = None, *, ask: bool = False
    ) -> str:
        """The messages as text; ask: ending with the words after which the assistant speaks."""
        try:
            return self.tokenizer.apply_chat_template(
                messages, tools=tools, chat_template=self.text, add_generation_prompt=ask, tokenize=False
            )
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            raise BadRow("template failed", str(error).split("\n")[0] or type(error).__name__,
                         "change the row, or choose another data.template") from None  # fmt: skip

    @cached_property
    def controls(self) -> re.Pattern[str]:
        """Matches the tokens that can end a turn: everything added to the vocabulary, special or not."""
        added = self.tokenizer.added_tokens_decoder.values()
        words = {str(token) for token in added} | {self.tokenizer.eos_token or ""}
        return re.compile(
            "|".join(re.escape(w) for w in sorted(words, key=len, reverse=True) if w.strip()) or r"(?!)"
        )

    def learn(self, row: Row) -> Rendered:
        """The conversation as text with the spans of its assistant turns. BadRow where the template loses a turn."""
        messages, tools = row.value, row.tools
        text = self.render(messages, tools)
        for number, message in enumerate(messages, 1):
            if message["role"] in ("user", "system", "developer") and message["content"].strip() not in text:
                raise BadRow("template failed", f"it does not write turn {number} ({message['role']})",
                             "change the row, or choose another data.template")  # fmt: skip
        starts, spans, altered, ended = [], [], 0, True
        for i, message in enumerate(messages):
            if message["role"] == "assistant":
                start, end, ended, plain = self._span(text, messages, i, tools)
                starts.append(start)
                if i >= row.first:
                    spans.append((start, end))
                    altered += not plain
        if ended:
            return Rendered(text, starts, spans, altered=altered)
        # This template ends no turn with a token: the text ends with the last answer, and with it the model must stop.
        eos = [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]
        return Rendered(text[: spans[-1][1]], starts, spans, tail=eos, altered=altered)

    def ask(self, messages: list[dict[str, Any]], tools: list[Any] | None = None) -> Rendered:
        """The conversation as the question for its next answer; earlier answers stand as they were learnt."""
        text = self.render(messages, tools, ask=True)
        spoken = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        return Rendered(text, [self._span(text, messages, i, tools, True)[0] for i in spoken])

    def _span(
        self, text: str, messages: list[dict[str, Any]], i: int, tools: Any, ask: bool = False
    ) -> tuple[int, int, bool, bool]:
        """Start and end of turn i in `text`; whether a control token ends it; whether it stands as it was generated."""
        content = messages[i]["content"].strip()
        try:
            asked = self.render(messages[:i], tools, ask=True) if i else ""
            upto = text if i + 1 == len(messages) else self.render(messages[: i + 1], tools)
        except BadRow:  # a template that wants the whole conversation
            asked, upto = MARK, ""
        if text.startswith(upto) and upto.startswith(asked):
            start, last, bare = len(asked), len(upto), len(upto.rstrip())
            found = upto.rfind(content, start) if content else -1
            answered = found + len(content) if found >= 0 else start
        else:
            start, answered = self._by_marker(text, messages, i, tools, ask)
            start = len(asked) if text.startswith(asked) and len(asked) <= answered else start
            last, bare = len(text), answered
        ends = list(self.controls.finditer(text, answered, last))
        # An answer that is not there word for word (a tool call) may hold control tokens itself: the last one ends it.
        stop = ends[0 if answered > start else -1] if ends else None
        end = stop.end() if stop else bare
        if not text[start : stop.start() if stop else end].strip():
            raise BadRow("template failed", f"it writes nothing for turn {i + 1} (assistant)",
                         "change the row, or choose another data.template")  # fmt: skip
        return (
            start,
            end,
            stop is not None,
            upto.startswith(text[:start]) and upto.startswith(text[start:end], len(asked)),
        )

    def _by_marker(
        self, text: str, messages: list[dict[str, Any]], i: int, tools: Any, ask: bool
    ) -> tuple[int, int]:
        """Where the content of turn i begins and ends, seen by writing a marker in its place."""
        marked = self.render(
            [*messages[:i], messages[i] | {"content": MARK}, *messages[i + 1 :]], tools, ask=ask
        )
        head, _, tail = marked.partition(MARK)
        if MARK not in marked or MARK in tail or not (text.startswith(head) and text.endswith(tail)):
            raise BadRow(
                "template failed",
                f"turn {i + 1} is not found in what it writes",
                "choose another data.template",
            )
        return len(head), len(text) - len(tail)
