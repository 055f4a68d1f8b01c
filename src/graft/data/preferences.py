"""The rows that say which answers are better, or good, in their normal form (`rows.Row`).

    preference   chosen, rejected: texts, messages, or lists of messages; with a prompt, or as conversations
                 that begin alike ("\\n\\nHuman: ...\\n\\nAssistant: ..." too)
    ranking      several answers to a prompt, with scores or ranks
    judged       an answer, and whether it is a good one

A prompt that has no column of its own is what the sides have in common, up to the turn of the assistant from
which they differ; it never holds a part of an answer.
"""

import re
from collections.abc import Sequence
from typing import Any

from graft.data.columns import ASKED, SYSTEM, Fields, blank, truth
from graft.data.messages import messages_of, tools_of, with_answer
from graft.data.normal_form import (
    Messages,
    Names,
    instruction_in,
    system_in,
    turns_in,
    with_context,
    with_system,
)
from graft.data.rows import BadRow, Row, compared
from graft.data.scores import measured, scores_of_pair

HH_TURN = re.compile(r"\n\n(Human|Assistant):")  # begins a turn in Anthropic's transcripts
REPEATED = 4  # words of a prompt from which on its repetition before an answer is no part of the answer
TWICE = "the prompt, where answers repeat it"
Side = tuple[str, Any]  # an answer as the file has it, after the name of its column
# Where answers are whole conversations, these columns hold one of them again.
TALKS = ("conversations", "conversation", "messages")


def preference_row(source: str, fields: Fields, names: Names) -> Row:
    """Build the row of a better and a worse answer.  names: (chosen, rejected)."""
    prompt, answers, unused = asked_and_answered(fields, [(name, fields[name]) for name in names])
    if answers[0] == answers[1]:
        raise BadRow("identical answers", f"{names[0]!r} and {names[1]!r} are the same", "remove the row")
    return row_of(source, "ranking", (prompt, answers, scores_of_pair(fields)), fields, unused)


def ranking_row(source: str, fields: Fields, names: Names) -> Row:
    """Build the row of several answers with scores or ranks.  names: (answers,).

    Ranks decide the order; they become scores only where some are equal.
    """
    found = measured(fields, names[0])
    order = sorted(range(len(found.said)), key=lambda k: -found.scores[k])  # stable: equal ones keep theirs
    scores = tuple(found.scores[k] for k in order)
    pairs = compared(scores, len(scores))
    if not pairs:
        raise BadRow("no preference", f"every answer in {names[0]!r} has the same score", "remove the row")
    prompt, answers, twice = asked_and_answered(fields, [found.said[k] for k in order])
    for better, worse in pairs:
        if answers[better] == answers[worse]:
            same = " and ".join(found.said[order[k]][0] for k in (better, worse))
            detail = f"{same} are the same, their scores are not"
            raise BadRow("identical answers", detail, "keep one of them")
    only_order = found.ranked and len(set(scores)) == len(scores)
    value = prompt, answers, None if only_order else scores
    return row_of(source, "ranking", value, fields, found.unused + twice)


def judged_row(source: str, fields: Fields, names: Names) -> Row:
    """Build the row of an answer with a verdict.  names: (prompt, completion, label) or (messages, label)."""
    *answered, verdict = names
    good = truth(fields[verdict])
    if good is None:
        detail = f"{verdict!r} is {fields[verdict]!r:.40}"
        raise BadRow("bad label", detail, "write true for a good answer and false for a bad one")
    if len(answered) == 1:
        talk, (answer,) = _in_common([with_answer(turns_in(fields[answered[0]]))])
        return row_of(source, "judged", (with_system(fields, talk), answer, good), fields)
    asked, said = answered
    prompt, answers, unused = asked_and_answered(fields, [(said, fields[said])], asked)
    return row_of(source, "judged", (prompt, answers[0], good), fields, unused)


def row_of(source: str, kind: str, value: Any, fields: Fields, unused: Names = ()) -> Row:
    """Return the row; a conversation has the tools of its column, which no text shows."""
    tools = None if isinstance(value[0], str) else tools_of(fields)
    return Row(source, kind, value, tools, unused=unused)


def asked_and_answered(
    fields: Fields, sides: Sequence[Side], asked: str | None = None
) -> tuple[str | Messages, tuple[Any, ...], Names]:
    """Return the prompt and the answers of a row, texts or lists of messages, and what is not read of them.

    asked: the column of the prompt; None: the first one that has such a name.
    """
    for name, value in sides:
        if blank(value):
            raise BadRow("no answer", f"{name!r} is empty", "fill it or remove the row")
    asked = asked or next((name for name in ASKED if not blank(fields.peek(name))), None)
    if not all(isinstance(value, str) for _, value in sides):
        return *_of_talks(fields, asked, [_talk(*side) for side in sides]), ()
    if asked is None:
        return *_in_common([_transcript(*side) for side in sides]), ()
    prompt, texts = _prompt(fields, asked), [str(value) for _, value in sides]
    if not isinstance(prompt, str):
        return prompt, tuple([{"role": "assistant", "content": text}] for text in texts), ()
    repeated = len(prompt.split()) >= REPEATED and all(text.startswith(prompt) for text in texts)
    if repeated and all(text[len(prompt) :].strip() for text in texts):
        return prompt, tuple(text[len(prompt) :] for text in texts), (TWICE,)
    return prompt, tuple(texts), ()


def _prompt(fields: Fields, asked: str) -> str | Messages:
    """Return what the column `asked` asks, a text, or messages where `normal_form` makes a conversation."""
    if asked == "instruction":
        return instruction_in(fields)
    if not isinstance(fields[asked], str):
        prompt = with_system(fields, turns_in(fields[asked]))
        if prompt and prompt[-1]["role"] == "assistant":
            raise BadRow("no prompt", f"{asked!r} ends with an answer", "end it with what was asked")
        return prompt
    text = with_context(fields, asked)
    if not any(name in fields for name in SYSTEM):
        return text
    return [*system_in(fields), {"role": "user", "content": text}]


def _talk(name: str, value: Any) -> Messages:
    """Return an answer as messages of which the assistant has the last word."""
    if isinstance(value, str):
        return [{"role": "assistant", "content": value}]
    if not isinstance(value, list | dict):
        detail = f"{name!r} is {type(value).__name__} {str(value)[:40]!r}"
        raise BadRow("not text", detail, "write a text, a message or a list of messages")
    message = isinstance(value, dict) and not any(isinstance(part, list) for part in value.values())
    return with_answer(turns_in([value] if message else value))


def _transcript(name: str, text: str) -> Messages:
    """Return the turns of a conversation that is written as one text."""
    begin, *pieces = HH_TURN.split("\n\n" + text.lstrip())
    if begin:
        detail = f"no column holds a prompt, and {name!r} is a text without turns"
        raise BadRow("no prompt", detail, "name the column of the prompt: data.columns='{prompt: NAME}'")
    turns = [
        {"role": who, "content": said.strip()} for who, said in zip(pieces[::2], pieces[1::2], strict=True)
    ]
    return with_answer(messages_of(turns, "role", "content"))


def _of_talks(
    fields: Fields, asked: str | None, talks: Sequence[Messages]
) -> tuple[Messages, tuple[Messages, ...]]:
    """Return the prompt and the answers of sides that are messages.  asked: the prompt's column, if any."""
    if all(talk[0]["role"] == "assistant" for talk in talks):
        if asked is None:
            raise BadRow("no prompt", "the answers follow nothing", "put what was asked before them")
        prompt = _prompt(fields, asked)
        given: Messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        return given, tuple(map(_unweighted, talks))
    common, answers = _in_common(talks)
    if asked is not None and asked not in TALKS:
        given = _given(fields, asked)
        if not _contains(common, given):
            detail = f"{asked!r} is not what the conversations begin with"
            raise BadRow("prompt differs", detail, "write the answers alone, or leave the prompt out")
        if common[: len(given)] == given and len(given) < len(common):
            # The prompt is given: what both sides say after it belongs to their answers.
            common, answers = given, tuple(_unweighted(talk[len(given) :]) for talk in talks)
    return with_system(fields, common), answers


def _given(fields: Fields, asked: str) -> Messages:
    if isinstance(fields[asked], str):
        return [{"role": "user", "content": fields[asked]}]
    return turns_in(fields[asked])


def _contains(common: Messages, given: Messages) -> bool:
    """Return whether a common beginning has a given prompt: as its beginning, or as one of its questions."""
    if common[: len(given)] == given:
        return True
    said = {message["content"].strip() for message in common if message["role"] == "user"}
    return len(given) == 1 and given[0]["content"].strip() in said


def _in_common(talks: Sequence[Messages]) -> tuple[Messages, tuple[Messages, ...]]:
    """Return the beginning that conversations share, and the rest of each: from an assistant's turn on."""
    shortest = min(map(len, talks))
    same = next((k for k in range(shortest) if any(talk[k] != talks[0][k] for talk in talks)), shortest)
    last = min(same, shortest - 1)
    end = next((k for k in range(last, -1, -1) if all(t[k]["role"] == "assistant" for t in talks)), 0)
    if not end:
        detail = "the conversations differ from their first question on" if same == 0 else "nothing is asked"
        raise BadRow("no common prompt", detail, "let all answers follow the same prompt")
    return talks[0][:end], tuple(_unweighted(talk[end:]) for talk in talks)


def _unweighted(answer: Messages) -> Messages:
    """Return an answer without the weights of its turns: all that the assistant says is compared."""
    return [{key: value for key, value in turn.items() if key != "weight"} for turn in answer]
