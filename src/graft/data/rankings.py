"""Rows that compare answers become examples: rankings of several answers, and answers with a verdict.

    ranking    ids = prompt; parts: "answers" one after the other, "ends" of each, "scores" in thousandths
    judged     ids = prompt answer, the answer is learnt; target = 1 (good) or 0; part "other"

Every answer has the ids that it would have in a supervised row of its own, with the token that ends it, and
all answers of a ranking follow the same ids. "other" is the answer to another prompt, for KTO's estimate of
the divergence on pairs that do not belong together (Ethayarajh et al. 2024, arXiv 2402.01306). Where
not every token of these is learnt, the part "learnt" tells which are.
"""

from collections.abc import Sequence

from graft.data.conversations import Conversations
from graft.data.encode import IGNORED, OTHER, Encoded, Example, Outcomes
from graft.data.rows import BadRow, Row, compared, with_answers
from graft.data.turns import OTHER_TEMPLATE

THOUSANDTHS = 1000  # scores are stored as whole numbers of these
Answer = tuple[list[int], list[int]]  # ids and labels


class Answers(Conversations):
    """Base class: encodes each answer of a row after its prompt, as `Conversations` encodes a row."""

    def holds_tokens(self, row: Row) -> bool:
        return all(super(Answers, self).holds_tokens(each) for each in with_answers(row))

    def each(self, row: Row, apart: Encoded) -> list[Example]:
        """Return prompt and answer for every answer of a row. Raises BadRow if one cannot be encoded.

        Each ends with the token that ends the answer, whatever a template writes behind it.

        apart: where the answers are counted; `count` counts them as one row.
        """
        examples: list[Example] = []
        for _, outcome in super().encode(with_answers(row), apart):
            if isinstance(outcome, BadRow):
                raise outcome
            examples += map(_ended, outcome)
        return examples

    def count(self, apart: Encoded, encoded: Encoded) -> None:
        """Count a row whose answers were counted one by one."""
        encoded.altered += apart.altered
        encoded.cut += apart.cut[:1]
        encoded.unused.update(set(apart.unused))


class Rankings(Answers):
    """Encodes rankings of two or more answers to one prompt.  Takes what `Conversations` takes."""

    def encode(self, rows: list[Row], encoded: Encoded) -> Outcomes:
        for row in rows:
            if row.kind != "ranking":
                detail = "one answer with a verdict, and no other to compare it with"
                yield row, BadRow("single answer", detail, "learn from it with objective: kto")
                continue
            apart = Encoded()
            try:
                example = _joined(row, self.each(row, apart), cut=bool(apart.cut))
            except BadRow as bad:
                yield row, bad
                continue
            self.count(apart, encoded)
            yield row, [example]


class Judged(Answers):
    """Encodes answers with a verdict; of a ranking, the best as a good one and the worst as a bad one."""

    def encode(self, rows: list[Row], encoded: Encoded) -> Outcomes:
        made: list[tuple[Row, list[Example]]] = []
        for row in rows:
            apart = Encoded()
            try:
                examples = self.each(row, apart)
            except BadRow as bad:
                yield row, bad
                continue
            if row.kind == "ranking":
                if len(examples) > 2:
                    apart.unused["answers between the best and the worst"] += 1
                examples = [examples[0], examples[-1]]
            self.count(apart, encoded)
            for example, good in zip(examples, _verdicts(row), strict=True):
                example.target = int(good)
            made.append((row, examples))
        _pair_with_others([example for _, examples in made for example in examples], self.max_length)
        yield from made


def prompt_length(example: Example) -> int:
    """Return how many ids of an example come before its answer: before the first that is learnt."""
    return next(k for k, label in enumerate(example.labels) if label != IGNORED)


def _ended(example: Example) -> Example:
    """Return an example without the tokens behind the last that is learnt."""
    end = next(k for k in range(len(example.labels), 0, -1) if example.labels[k - 1] != IGNORED)
    return Example(example.ids[:end], example.labels[:end], example.source)


def _answer(example: Example) -> Answer:
    start = prompt_length(example)
    return example.ids[start:], example.labels[start:]


def _verdicts(row: Row) -> tuple[bool, ...]:
    return (row.value[2],) if row.kind == "judged" else (True, False)


def _pair_with_others(examples: Sequence[Example], max_length: int) -> None:
    """Give each example the nearest answer before it to another prompt as "other"; none if there is none."""
    prompts = [example.ids[: prompt_length(example)] for example in examples]
    for i, example in enumerate(examples):
        before = (k % len(examples) for k in range(i - 1, i - len(examples), -1))
        other = next((k for k in before if prompts[k] != prompts[i]), None)
        if other is not None:
            example.parts = _parts([_answer(examples[other])], OTHER, max_length - len(prompts[i]))


def _joined(row: Row, examples: Sequence[Example], *, cut: bool) -> Example:
    """Return one example of all answers to the same prompt. Raises BadRow if that cannot be.

    cut: max_length has shortened an answer.
    """
    start = prompt_length(examples[0])
    prompt, scores = examples[0].ids[:start], row.value[2]
    for number, example in enumerate(examples, 1):
        if prompt_length(example) != start or example.ids[:start] != prompt:
            detail = f"it writes the prompt differently before answer {number}"
            raise BadRow("template failed", detail, OTHER_TEMPLATE)
    answers = [_answer(example) for example in examples]
    for better, worse in compared(scores, len(answers)):
        if answers[better] == answers[worse]:
            detail = f"answers {better + 1} and {worse + 1} have the same {len(answers[better][0])} tokens"
            if cut:
                raise BadRow("identical after the cut", detail, "raise data.max_length, or remove the row")
            raise BadRow("identical answers", detail, "remove the row, or choose another data.template")
    parts = _parts(answers, "answers")
    parts["ends"] = [sum(len(ids) for ids, _ in answers[: k + 1]) for k in range(len(answers))]
    if scores is not None:
        parts["scores"] = [round(score * THOUSANDTHS) for score in scores]
    return Example(prompt, [IGNORED] * start, row.source, parts=parts)


def _parts(answers: Sequence[Answer], name: str, room: int | None = None) -> dict[str, list[int]]:
    """Return the ids of answers as a part, and which of them are learnt where not all are.

    room: the tokens that are left for an answer; None: as many as it has.
    """
    ids = [token for answer, _ in answers for token in answer[:room]]
    learnt = [int(label != IGNORED) for _, labels in answers for label in labels[:room]]
    return {name: ids} if all(learnt) else {name: ids, "learnt": learnt}
