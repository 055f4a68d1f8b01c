"""A person as judge: pairs of answers in the terminal, without the names of the models."""

from collections.abc import Callable, Sequence
from pathlib import Path

from graft.evaluate.judgements import FIRST, SECOND, TIE
from graft.evaluate.judges import Judge, Opinion, Question
from graft.evaluate.kept import Kept

WORDS = {"1": FIRST, "2": SECOND, "t": TIE, "tie": TIE, "3": TIE, "s": None, "skip": None}
STOP = ("q", "quit")
CHOICE = "1 or 2 is better, t: tie, s: no verdict, q: stop > "


def by_person(
    ask: Callable[[str], str], show: Callable[[str], None], kept: Path | None = None, name: str = "me"
) -> Judge:
    """Return a person as a judge.

    ask: shows a line and returns what was typed; EOFError stops.  show: shows a text.
    kept: the file of verdicts; what stands there is not asked again.  name: whose verdicts they are.
    After a stop the questions that are left have no opinion, None.
    """

    def judge(questions: Sequence[Question]) -> list[Opinion | None]:
        verdicts = Kept(kept)
        opinions: list[Opinion | None] = []
        stopped = False
        for number, question in enumerate(questions, 1):
            pair = [name, question.prompt, question.first, question.second]
            typed = verdicts.get(pair)
            if typed is None and not stopped:
                show(_shown(question, number, len(questions)))
                typed = _typed(ask)
                stopped = typed is None
                if typed is not None:
                    verdicts.put(pair, typed)
            opinions.append(None if typed is None else Opinion(WORDS[typed]))
        return opinions

    return judge


def _typed(ask: Callable[[str], str]) -> str | None:
    """Return one of WORDS, asked for until it comes; None to stop."""
    while True:
        try:
            typed = ask(CHOICE).strip().lower()
        except EOFError:
            return None
        if typed in STOP:
            return None
        if typed in WORDS:
            return typed


def _shown(question: Question, number: int, count: int) -> str:
    rule = "-" * 60
    return (
        f"\n{rule}\n{number} of {count}\n\n{question.prompt}\n\n{rule} answer 1\n{question.first}\n\n"
        f"{rule} answer 2\n{question.second}\n{rule}"
    )
