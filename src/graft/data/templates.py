"""Chat templates: which one writes a conversation, and how a prompt becomes ids, in training and in use.

A template is the tokenizer's own, a built-in one (chat_templates.py), or a Jinja file. A tokenizer may have
several: `tool_use` writes the rows with tools and `default` the others, as transformers chooses. Templates
run in a process of their own (rendering.py), where turns.py finds what is learnt of the text.
"""

import json
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from graft.data.chat_templates import BUILTIN, TOKENS, jinja
from graft.data.marks import Messages, Tools
from graft.data.mask import Rendered, tokenise
from graft.data.rendering import renderer
from graft.data.rows import BadRow, Row
from graft.errors import DataError, one_of

Jinja = str | dict[str, str]  # the text of a template, or of several by name
# What a model is asked: a text as it is, messages for the chat template, or {"messages": ..., "tools": ...}.
Prompt = str | Messages | dict[str, Any]


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
        added = tokenizer.added_tokens_decoder.values()
        words = {str(token) for token in added} | {tokenizer.eos_token or ""}
        self._controls = sorted((word for word in words if word.strip()), key=len, reverse=True)
        facts = {
            "text": text,
            "variables": {name: _words(word) for name, word in tokenizer.special_tokens_map.items()},
            "controls": self._controls,
            "eos": (tokenizer.eos_token, tokenizer.eos_token_id),
        }
        self._facts = json.dumps(facts)

    def render(self, messages: Messages, tools: Tools = None, ask: bool = False) -> str:
        """Return the messages as text.  ask: end with the words after which the assistant speaks."""
        (text,) = self._asked("render", [{"messages": messages, "tools": tools, "ask": ask}])
        return str(_value(text))

    @cached_property
    def controls(self) -> re.Pattern[str]:
        """The tokens that can end a turn: everything added to the vocabulary, special or not."""
        return re.compile("|".join(map(re.escape, self._controls)) or r"(?!)")

    def learn(self, row: Row) -> Rendered:
        """Return a conversation as text, with the spans that are learnt.

        Raises BadRow if the template loses a turn, and if no turn may be learnt.
        """
        (rendered,) = self.learn_all([row])
        return _value(rendered)

    def learn_all(self, rows: Sequence[Row]) -> list[Rendered | BadRow]:
        """Return what `learn` returns or raises of each row."""
        return [_rendered(facts) for facts in self._asked("learn", [_told(row) for row in rows])]

    def ask(self, messages: Messages, tools: Tools = None) -> Rendered:
        """Return a conversation as the prompt for its next answer; earlier answers are as in `learn`."""
        (facts,) = self._asked("ask", [{"messages": messages, "tools": tools}])
        return _value(_rendered(facts))

    def question(self, row: Row) -> Rendered:
        """Return the prompt for the last answer of a row, for an encoder-decoder.

        Raises BadRow if the template loses a turn, and for an answer without text or with weight 0.
        """
        (facts,) = self._asked("question", [_told(row)])
        return _value(_rendered(facts))

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
        (around,) = self._asked("around", [{}])
        asking, between, behind = _value(around)
        return asking, between, behind

    def _asked(self, what: str, of: list[dict[str, Any]]) -> list[Any]:
        return renderer.answers(self._facts, what, of)


def _told(row: Row) -> dict[str, Any]:
    """Return a row as the process in which templates run reads it."""
    return {name: getattr(row, name) for name in ("source", "kind", "value", "tools", "first")}


def _words(word: Any) -> Any:
    """Return a special token, or several, as plain text."""
    return [str(each) for each in word] if isinstance(word, list | tuple) else str(word)


def _rendered(facts: Any) -> Rendered | BadRow:
    if isinstance(facts, BadRow):
        return facts
    facts["spans"] = [(start, end) for start, end in facts["spans"]]
    return Rendered(**facts | {"unused": tuple(facts["unused"])})


def _value(answer: Any) -> Any:
    """Return an answer. Raises it where it is a BadRow."""
    if isinstance(answer, BadRow):
        raise answer
    return answer
