"""Files of answers, which judges compare: one JSON object a line, {"prompt": "...", "answer": "..."}.

A prompt is a text or a list of messages. "reference", a text or a list of texts, is what is right; "model"
names who wrote the answer, by default the file's name. Other columns are not read.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graft.data.read import records
from graft.data.rows import BadRow, Reject
from graft.errors import DataError, listed, notice

ANSWER = ("answer", "completion", "response", "output", "text")  # what the column may be called
EXAMPLE = '{"prompt": "...", "answer": "..."}'


@dataclass(frozen=True)
class Answer:
    """An answer to a prompt.

    references: answers that are right.  source: `file:line`.  asked: the prompt, a text or messages.
    """

    text: str
    references: tuple[str, ...] = ()
    source: str = ""
    asked: Any = ""


Answers = dict[str, dict[str, Answer]]  # {model: {prompt: answer}}


def read_answers(*paths: str | Path) -> Answers:
    """Return the answers of some files. Raises DataError that names the rows that are none.

    A model may have one answer to each prompt. Two files with the same name are told apart by their folders.
    """
    answers: Answers = {}
    rejects = list[Reject]()
    names = [_name(Path(path), paths) for path in paths]
    for path, name in zip(paths, names, strict=True):
        for record in records(path):
            if isinstance(record, Reject):
                rejects.append(record)
                continue
            try:
                prompt, answer = _answer(record.fields, record.source)
                own = answers.setdefault(str(record.fields.get("model") or name), {})
                if prompt in own:
                    detail = f"the same prompt stands at {own[prompt].source}"
                    raise BadRow("second answer", detail, "keep one answer of a model to each prompt")
                own[prompt] = answer
            except BadRow as bad:
                rejects.append(bad.at(record.source))
    if rejects:
        raise DataError(
            f"{len(rejects)} rows are not answers: {listed(rejects, 3, '; ')}",
            f"rows such as {EXAMPLE}",
            "correct these rows",
        )
    return answers


def merged(*several: Answers) -> Answers:
    """Return the answers of several `Answers` together; where two differ, the first counts, with a notice."""
    together: Answers = {}
    for answers in several:
        for model, own in answers.items():
            known = together.setdefault(model, {})
            other = [
                answer.source
                for prompt, answer in own.items()
                if known.get(prompt, answer).text != answer.text
            ]
            if other:
                notice(f"{len(other)} answers of {model} differ between files; left out: {listed(other, 3)}")
            together[model] = own | known
    return together


def prompts_in(answers: Mapping[str, Mapping[str, Answer]]) -> list[Any]:
    """Return every prompt that was answered, once, as the model that wrote the first answer was asked."""
    asked: dict[str, Any] = {}
    for own in answers.values():
        for prompt, answer in own.items():
            asked.setdefault(prompt, answer.asked)
    return list(asked.values())


def without_partner(answers: Mapping[str, Mapping[str, Answer]]) -> list[str]:
    """Return which answers have no partner in another model's, a sentence for each model that has such."""
    notes = []
    for model, texts in answers.items():
        others = {prompt for name, own in answers.items() if name != model for prompt in own}
        if alone := [answer.source for prompt, answer in texts.items() if prompt not in others]:
            notes.append(
                f"{len(alone)} answers of {model} have no partner and are not judged: {listed(alone, 3)}"
            )
    return notes


def _name(path: Path, paths: tuple[str | Path, ...]) -> str:
    """Return the name of a file's model: the file's own, with its folder if two files have the same."""
    stem = path.name.partition(".")[0]
    same = [other for other in paths if Path(other).name.partition(".")[0] == stem]
    return stem if len(same) < 2 else f"{path.absolute().parent.name}/{stem}"


def _answer(fields: Mapping[str, Any], source: str) -> tuple[str, Answer]:
    """Return the prompt and the answer in a row. Raises BadRow."""
    prompt = as_text(fields.get("prompt"))
    texts = [fields[name] for name in ANSWER if isinstance(fields.get(name), str)]
    if not prompt or not texts:
        missing = "an answer" if prompt else "a prompt"
        raise BadRow("no answer", f"it lacks {missing}", f"write {EXAMPLE}")
    given = fields.get("reference", fields.get("references"))
    references = tuple(given) if isinstance(given, list) else () if given is None else (given,)
    if not all(isinstance(one, str) for one in references):
        raise BadRow("no reference", f"reference is {given!r}", "write a text, or a list of texts")
    try:
        "".join([prompt, *texts, *references]).encode()
    except UnicodeEncodeError as error:
        detail = f"half a character at position {error.start}"
        raise BadRow("not Unicode", detail, "remove the lone surrogate") from None
    return prompt, Answer(texts[0], references, source, fields["prompt"])


def written(asked: Sequence[Any], texts: Sequence[str], name: str) -> dict[str, Answer]:
    """Return what a model wrote to some prompts as its answers.  name: of the model."""
    return {
        as_text(prompt): Answer(text.strip(), (), f"{name}:{number}", prompt)
        for number, (prompt, text) in enumerate(zip(asked, texts, strict=True), 1)
    }


def answer_lines(answers: Mapping[str, Mapping[str, Answer]]) -> str:
    """Return answers as the text of a file that `read_answers` reads."""
    rows = [
        {"prompt": answer.asked, "answer": answer.text, "model": name}
        for name, own in answers.items()
        for answer in own.values()
    ]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def as_text(prompt: Any) -> str:
    """Return a prompt as text: messages with the name of their role before each; "" for anything else.

    >>> as_text([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}])
    'user: Hi\\n\\nassistant: Hello'
    """
    if isinstance(prompt, dict):
        prompt = prompt.get("messages")
    if isinstance(prompt, str):
        return prompt
    if not isinstance(prompt, list) or not all(isinstance(turn, dict) for turn in prompt):
        return ""
    return "\n\n".join(f"{turn.get('role', 'user')}: {turn.get('content') or ''}" for turn in prompt)
