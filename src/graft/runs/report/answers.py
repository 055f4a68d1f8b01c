"""Answers on a run's page: each prompt with its references and what was answered, side by side."""

import re
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from html import escape
from typing import Any

from graft.runs.report.html import folded, paragraph, shortened, verbatim
from graft.runs.samples import by_step, spread

PROMPTS = 20  # of which a page shows the samples
FIRST = 6  # answers that are not folded
ROOM = 240_000  # characters of all answers together
LONG = 700  # characters of a text above which it is folded
BEGINNING = 160  # characters of a folded text that are shown
BRIEF = 60  # characters of an answer that is a class or a number
WORDS = 600  # words of a text above which it is not compared with its references
TELLING = 5  # letters of a single word that is marked
COMPARED = 4  # references that an answer is compared with
TITLES = {"before": "Before", "after": "After", "references": "Reference"}


def answers(texts: Sequence[Mapping[str, Any]]) -> str:
    """Return the texts of an evaluation: {"prompt", "references", "before", "after"} each."""
    brief = all(_is_brief(text) for text in texts)
    texts = _fitting(texts)
    cards = [_brief(text) if brief else _card(number, text) for number, text in enumerate(texts, 1)]
    shown = f'<div class="answers">{"".join(cards[:FIRST])}</div>'
    if not brief:
        hint = "Words that a reference has too are marked."
        shown = paragraph(hint, "soft") + shown
    if rest := cards[FIRST:]:
        more = f'<div class="answers">{"".join(rest)}</div>'
        shown += folded(f"{len(rest)} more", more)
    return shown


def _fitting(texts: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return texts with what is too long for the page cut short; evaluation.json has all of it."""
    room = max(1000, ROOM // max(1, sum(map(len, texts))))

    def cut(value: Any) -> Any:
        if isinstance(value, str):
            return shortened(value, room)
        if isinstance(value, dict):
            return {key: cut(inner) for key, inner in value.items()}
        return [cut(inner) for inner in value] if isinstance(value, list | tuple) else value

    return [cut(text) for text in texts]


def samples(text: str, prompts: Sequence[str]) -> str:
    """Return the answers to the sample prompts: what each prompt was answered at several steps."""
    found = by_step(text, prompts) if prompts else {}
    if not found:
        return verbatim(text)
    steps = spread(list(found))
    cards = []
    room = max(1000, ROOM // max(1, len(steps) * len(prompts)))
    for place, prompt in enumerate(prompts[:PROMPTS]):
        said = {step: shortened(found[step][place], room) for step in steps}
        sides = "".join(_side(f"Step {step}", block(text)) for step, text in said.items())
        cards.append(_split(_asked(prompt), sides))
    shown = f'<div class="answers">{"".join(cards)}</div>'
    if len(prompts) > PROMPTS:
        shown += paragraph(f"{len(prompts) - PROMPTS} more prompts are in samples.md.", "soft")
    if len(steps) < len(found):
        shown += folded(f"All {len(found)} evaluations", verbatim(text))
    return shown


def block(text: str, html: str | None = None) -> str:
    """Return a text, folded if it is long.  html: the same with marks."""
    text = text.strip("\n")
    if not text.strip():
        return '<div class="text empty">(nothing)</div>'
    shown = html if html is not None and len(text) <= LONG else escape(shortened(text))
    whole = f'<div class="text" dir="auto">{shown}</div>'
    if len(text) <= LONG:
        return whole
    beginning = " ".join(text[:BEGINNING].split())
    return folded(f"{beginning} … ({len(text):,} characters)", whole)


def marked(text: str, references: Sequence[str]) -> str:
    """Return a text with what it has in common with the reference that is most like it, in HTML.

    >>> marked("a red cat", ["the red cat"])
    'a <mark>red cat</mark>'
    """
    words = _words(text)
    others = [_words(reference) for reference in references[:COMPARED]]
    if len(words) > WORDS or any(len(other) > WORDS for other in others) or not others:
        return escape(text)
    matchers = [SequenceMatcher(None, other, words, autojunk=False) for other in others]
    best = max(matchers, key=lambda matcher: matcher.ratio())
    parts, end = [], 0
    for _, start, length in best.get_matching_blocks():
        same = "".join(words[start : start + length])
        parts.append(escape("".join(words[end:start])))
        parts.append(_mark(same) if _says_something(same) else escape(same))
        end = start + length
    return "".join(parts)


def _mark(text: str) -> str:
    """Return a text as marked; blanks and stops around it are not."""
    inner = re.sub(r"^\W+|\W+$", "", text)
    before, _, after = text.partition(inner)
    return f"{escape(before)}<mark>{escape(inner)}</mark>{escape(after)}"


def _says_something(text: str) -> bool:
    """Return whether a text in common is more than an article."""
    words = re.findall(r"\w+", text)
    return len(words) > 1 or any(len(word) >= TELLING for word in words)


def _words(text: str) -> list[str]:
    return re.findall(r"\s+|\w+|[^\w\s]", text)


def _card(number: int, text: Mapping[str, Any]) -> str:
    """Return a prompt with its references and answers."""
    references = _references(text)
    sides = [_side(*_named_references(references))] if references else []
    for name, answer in text.items():
        if name not in ("prompt", "references"):
            answer = str(answer)
            sides.append(_side(TITLES.get(name, name), block(answer, marked(answer, references))))
    asked = _asked(text.get("prompt", ""), f"Prompt {number}")
    return _split(asked, "".join(sides))


def _split(asked: str, sides: str) -> str:
    """Return a prompt beside what was answered, or over it where there is little room."""
    return (
        f'<article class="answer split"><div class="asked">{asked}</div>'
        f'<div class="sides">{sides}</div></article>'
    )


def _named_references(references: Sequence[str]) -> tuple[str, str]:
    title = "Reference" if len(references) == 1 else f"{len(references)} references, each of them right"
    return title, "".join(block(reference) for reference in references)


def _brief(text: Mapping[str, Any]) -> str:
    """Return a prompt with a class: what was answered, and what is right where that is something else."""
    answer, references = str(text.get("after", "")), _references(text)
    right = answer in references
    verdict = '<span class="better">✓ right</span>' if right else '<span class="worse">✗ wrong</span>'
    truth = "" if right else f'<span><span class="soft">is</span> {escape(" or ".join(references))}</span>'
    said = f'<span><span class="soft">answered</span> <b dir="auto">{escape(answer)}</b></span>'
    asked = block(_plain(text.get("prompt", "")))
    return f'<article class="answer">{asked}<div class="short">{verdict}{said}{truth}</div></article>'


def _is_brief(text: Mapping[str, Any]) -> bool:
    said = [str(text.get("after", "")), *_references(text)]
    return "before" not in text and all(len(one) <= BRIEF and "\n" not in one for one in said)


def _references(text: Mapping[str, Any]) -> list[str]:
    found = text.get("references") or []
    return [str(one) for one in found] if isinstance(found, list | tuple) else [str(found)]


def _asked(prompt: Any, title: str = "Prompt") -> str:
    """Return a prompt: a text, or the messages of a conversation under their roles."""
    messages = prompt.get("messages", []) if isinstance(prompt, dict) else prompt
    if isinstance(messages, str):
        return f"<h3>{escape(title)}</h3>{block(messages)}"
    parts = [f"<h3>{escape(title)}</h3>"]
    for message in messages:
        parts.append(f'<div class="role">{escape(str(message.get("role", "")))}</div>')
        parts.append(block(_content(message)))
    if isinstance(prompt, dict) and prompt.get("tools"):
        parts.append(f'<div class="role">with {len(prompt["tools"])} tools</div>')
    return "".join(parts)


def _plain(prompt: Any) -> str:
    if isinstance(prompt, str):
        return prompt
    messages = prompt.get("messages", []) if isinstance(prompt, dict) else prompt
    return "\n".join(_content(message) for message in messages)


def _content(message: Mapping[str, Any]) -> str:
    """Return what a message says: its text, or that of its parts."""
    content = message.get("content")
    if isinstance(content, list):
        return "\n".join(
            str(part.get("text", "")) if isinstance(part, dict) else str(part) for part in content
        )
    return "" if content is None else str(content)


def _side(title: str, body: str) -> str:
    return f"<div><h4>{escape(title)}</h4>{body}</div>"
