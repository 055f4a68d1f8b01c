"""The doctor for pairs: what rows that compare answers tell about themselves before any model has read them.

    longer wins = Σ_pairs ( [better longer] + ½ [equally long] ) / pairs

This is the accuracy of a judge who always takes the longer answer; one who takes the shorter is right in the
rest. The larger of the two is what a reward model must beat. Lengths count the tokens that the model sees.
Pairs are those of the training rows: a ranking of K answers has up to K(K − 1)/2.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from graft.data.encode import Column, Examples
from graft.data.row_store import where
from graft.data.rows import PREFERRED, Row, compared, with_answers

SHOWN = 3  # rows that a note names


@dataclass
class Pairs:
    """Facts about rankings and judged answers, as plain values.

    pairs: compared answers.  good, bad: answers with a verdict.
    longer, equal: pairs whose better answer is the longer one, or as long.  ratio: mean of its length by the
    other's.  repeated, reversed: pairs that were there before, in the same order and in the other.
    contradicted: answers that are good in one row and bad in another.
    shared: evaluation rows whose prompt is that of a training row.
    Sources are `file:line` of the first rows of each.
    """

    pairs: int = 0
    good: int = 0
    bad: int = 0
    longer: int = 0
    equal: int = 0
    ratio: float = 0.0
    repeated: int = 0
    repeated_sources: list[str] = field(default_factory=list)
    reversed: int = 0
    reversed_sources: list[str] = field(default_factory=list)
    contradicted: int = 0
    contradicted_sources: list[str] = field(default_factory=list)
    shared: int = 0
    shared_sources: list[str] = field(default_factory=list)

    @property
    def longer_wins(self) -> float:
        """Accuracy of the judgement that the longer answer is the better one; 0.5 without pairs."""
        return (self.longer + self.equal / 2) / self.pairs if self.pairs else 0.5

    def notes(self) -> list[str]:
        """Return what the user should know before training, one sentence each."""
        longer = self.longer_wins >= 0.5
        share = max(self.longer_wins, 1 - self.longer_wins)
        lengths = (
            f"the better answer is the longer one in {self.longer / max(self.pairs, 1):.0%} of "
            f"{self.pairs:,} pairs, {self.ratio:.2f} times as long on average; a reward model must beat "
            f"{share:.1%}: so often the {'longer' if longer else 'shorter'} one is the better"
        )
        candidates = [
            (self.ratio, lengths, []),
            (self.good + self.bad, f"{self.good:,} good and {self.bad:,} bad answers", []),
            (self.repeated, f"{self.repeated} pairs repeat another one", self.repeated_sources),
            (
                self.reversed,
                f"{self.reversed} pairs are there in the other order too: one of the two is wrong",
                self.reversed_sources,
            ),
            (
                self.contradicted,
                f"{self.contradicted} answers are good in one row and bad in another",
                self.contradicted_sources,
            ),
            (
                self.shared,
                f"{self.shared} evaluation rows have the prompt of a training row: their score will flatter",
                self.shared_sources,
            ),
        ]
        return [_with_places(text, sources) for count, text, sources in candidates if count]


def examine(train: Sequence[Row], held_out: Sequence[Row], examples: Examples) -> Pairs | None:
    """Return the facts about the training rows that have examples; None where rows compare nothing.

    held_out: rows of evaluation and test.  examples: of the training rows.
    """
    if not any(row.kind in PREFERRED for row in train):
        return None
    known = set(examples.sources)
    rows = where(train, lambda row: row.kind in PREFERRED and row.source in known)
    if not rows:
        return None
    facts = Pairs()
    _compare(facts, where(rows, lambda row: row.kind == "ranking"))
    _judge(facts, where(rows, lambda row: row.kind == "judged"))
    _measure(facts, examples)
    prompts = {row.group() for row in rows}
    for row in held_out:
        if row.group() in prompts:
            facts.shared += 1
            _name(facts.shared_sources, row)
    return facts


def _compare(facts: Pairs, rows: Sequence[Row]) -> None:
    """Count pairs that are there twice, in the same or in the other order."""
    seen: set[bytes] = set()
    for row in rows:
        keys = [each.key() for each in with_answers(row)]  # of the prompt with each answer
        for better, worse in compared(row.value[2], len(keys)):
            pair, other = keys[better] + keys[worse], keys[worse] + keys[better]
            facts.pairs += 1
            if pair in seen:
                facts.repeated += 1
                _name(facts.repeated_sources, row)
            if other in seen:
                facts.reversed += 1
                _name(facts.reversed_sources, row)
            seen.add(pair)


def _judge(facts: Pairs, rows: Sequence[Row]) -> None:
    """Count good and bad answers, and those that are both."""
    verdicts: dict[bytes, bool] = {}
    for row in rows:
        good = row.value[2]
        facts.good += good
        facts.bad += not good
        if verdicts.setdefault(with_answers(row)[0].key(), good) != good:
            facts.contradicted += 1
            _name(facts.contradicted_sources, row)


def _measure(facts: Pairs, examples: Examples) -> None:
    """Compare the lengths of the answers in every pair."""
    nothing = Column(ends=array("q", [0] * len(examples)))
    columns = (examples.parts.get(name, nothing) for name in ("ends", "scores"))
    ratios = []
    for ends, scores in zip(*([column[i] for i in range(len(examples))] for column in columns), strict=True):
        lengths = [end - begin for begin, end in pairwise([0, *ends])]
        for better, worse in compared(scores or None, len(lengths)):
            facts.longer += lengths[better] > lengths[worse]
            facts.equal += lengths[better] == lengths[worse]
            ratios.append(lengths[better] / lengths[worse])
    facts.ratio = sum(ratios) / len(ratios) if ratios else 0.0


def _name(sources: list[str], row: Row) -> None:
    if len(sources) < SHOWN:
        sources.append(row.source)


def _with_places(text: str, sources: Sequence[str]) -> str:
    return f"{text}; first {', '.join(sources)}" if sources else text
