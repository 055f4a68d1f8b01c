"""Chat templates: which one writes a conversation, and how a prompt becomes ids, in training and in use.

A template is the tokenizer's own, a built-in one (chat_templates.py), or a Jinja file. It runs in
transformers' sandbox. A tokenizer may have several: `tool_use` writes the rows with tools and `default` the
others, as transformers chooses. What is learnt of the text, turns.py finds.
"""

import re
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError

from graft.data.chat_templates import BUILTIN, TOKENS, jinja
from graft.data.marks import Messages, Tools
from graft.data.mask import Rendered, tokenise
from graft.data.places import OTHER
from graft.data.rows import BadRow, Row
from graft.data.tool_calls import in_written_form
from graft.data.turns import OTHER_TEMPLATE, Talk
from graft.errors import DataError, one_of

Jinja = str | dict[str, str]  # the text of a template, or of several by name
# What a model is asked: a text as it is, messages for the chat template, or {"messages": ..., "tools": ...}.
Prompt = str | Messages | dict[str, Any]
CALLS = "arguments of tool_calls"


def source(tokenizer: Any, name: str | None = None) -> Jinja:
    """Return the Jinja text of a template, or the texts by name where the tokenizer has several.

    name: a built-in one, or a Jinja file; None for the tokenizer's own, or `plain` if it has none.

    A built-in template writes the beginning-of-text token exactly if this tokenizer writes one by itself.
    Raises UsageError for an unknown name, and DataError for a tokenizer without the tokens that the template
    needs, or with several templates none of which is called default or tool_use.
    """
    if name is None and tokenizer.chat_template:
        own: Jinja = tokenizer.chat_template
        if not isinstance(own, str) and not {"default", "tool_use"} & own.keys():
            raise DataError(
                f"The tokenizer has the chat templates {', '.join(own)}",
                "one that is called default, or tool_use for rows with tools",
                "set data.template to a file with the one that you mean",
            )
        return own
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


def head(text: str, tokenizer: Any) -> list[int]:
    """Return the ids that this tokenizer puts before a text; none if the text begins with them by itself."""
    before, _ = affixes(tokenizer)
    return [] if before and text.startswith(tokenizer.decode(before)) else before


def prompt_ids(
    prompt: Prompt,
    tokenizer: Any,
    *,
    template: Jinja | None = None,
    tools: Tools = None,
    family: str = "causal",
) -> list[int]:
    """Return the ids with which a model is prompted: a text as it is, messages through the chat template.

    Training rows begin with exactly these ids, in every turn of a conversation.

    template: as `source` returns it; None is the tokenizer's own or `plain`.  tools: JSON schemas that the
    template shows, if the prompt does not bring them.  family: "seq2seq" adds the ids that end an encoder's
    input.
    """
    if isinstance(prompt, str):
        rendered = Rendered(prompt, head=head(prompt, tokenizer))
    else:
        messages = prompt["messages"] if isinstance(prompt, dict) else prompt
        shown = prompt.get("tools") or tools if isinstance(prompt, dict) else tools
        rendered = Template(tokenizer, template or source(tokenizer)).ask(messages, shown)
    ((ids, _, _),) = tokenise([rendered], tokenizer)
    return ids + (affixes(tokenizer)[1] if family == "seq2seq" else [])


class Template:
    """A Jinja chat template together with the tokenizer for which it writes.

    text: of the template, or of several by name, see `source`.
    """

    def __init__(self, tokenizer: Any, text: Jinja) -> None:
        self.tokenizer = tokenizer
        self.text = text

    def render(self, messages: Messages, tools: Tools = None, ask: bool = False) -> str:
        """Return the messages as text.  ask: end with the words after which the assistant speaks."""
        told = [{k: v for k, v in message.items() if k != "weight"} for message in messages]
        try:
            return self.tokenizer.apply_chat_template(
                told,
                tools=tools,
                chat_template=self._chosen(tools),
                add_generation_prompt=ask,
                tokenize=False,
            )
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            detail = str(error).split("\n")[0] or type(error).__name__
            raise BadRow("template failed", detail, OTHER_TEMPLATE) from None

    def _chosen(self, tools: Tools) -> str:
        """Return the template for these tools, as transformers chooses among several."""
        if isinstance(self.text, str):
            return self.text
        name = "tool_use" if tools is not None and "tool_use" in self.text else "default"
        if name not in self.text:
            detail = f"there is none called default, only {', '.join(self.text)}"
            raise BadRow("template failed", detail, OTHER_TEMPLATE)
        return self.text[name]

    @cached_property
    def controls(self) -> re.Pattern[str]:
        """The tokens that can end a turn: everything added to the vocabulary, special or not."""
        added = self.tokenizer.added_tokens_decoder.values()
        words = {str(token) for token in added} | {self.tokenizer.eos_token or ""}
        longest_first = sorted((word for word in words if word.strip()), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def ends(self, text: str) -> bool:
        """Return whether a control token stands at the end of a text; blanks may follow it."""
        text = text.rstrip()
        return any(control.end() == len(text) for control in self.controls.finditer(text))

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
        eos = [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]
        return Rendered(talk.text[: last.end], starts, spans, tail=eos, **facts)

    def ask(self, messages: Messages, tools: Tools = None) -> Rendered:
        """Return a conversation as the prompt for its next answer; earlier answers are as in `learn`."""
        talk, _ = self._talk(messages, tools, ask=True)
        return Rendered(talk.text, [talk.start(i) for i in talk.speaks])

    def asked_and_answered(self, row: Row) -> tuple[Rendered, str]:
        """Return the prompt for the last answer, and the text of that answer, for an encoder-decoder.

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
        return Rendered(talk.text, starts, unused=tuple(sorted(unused))), last["content"]

    def wrote(self, text: str) -> bool:
        """Return whether a text has what this template writes between question and answer, and behind."""
        asking, between, behind = self._around
        return behind in text and any(words and words in text for words in (asking, between))

    @cached_property
    def end(self) -> str | None:
        """The token that the template writes behind an answer; None without one."""
        return self._around[2] or None

    @cached_property
    def _around(self) -> tuple[str, str, str]:
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
        return Talk(told, tools, self.render, self.controls, self.tokenizer.eos_token, ask), works


def unused_of(talk: Talk, messages: Messages, calls_written: bool) -> set[str]:
    """Return the names of what a conversation says and the template does not write, see `Talk.unused`."""
    asking = {f"weight 1 of a {m['role']} turn" for m in messages if m.get("weight") == 1}
    return talk.unused() | asking | (set() if calls_written else {CALLS})
