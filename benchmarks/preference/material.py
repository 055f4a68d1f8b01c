"""The rows of both data sets as texts, in three folds: each fold is tested by the model that did not see it.

    hh       HH-RLHF, harmless-base (Bai et al. 2022, arXiv 2204.05862): dialogues with two last answers
    oasst    Open Assistant (Köpf et al. 2023, arXiv 2304.07327): all pairs of ranked answers to one question

A dialogue is written as `Human: ... Assistant: ...`. The oldest turns are left out until it fits the context.
A pair is left out if it still does not fit, or if a token lies across the end of the prompt, which TRL would
cut away. All pairs of one prompt, or of one tree, are in the same fold.
"""

import gzip
import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tasks

WORK = tasks.ROOT / "runs" / "preference"
FOLDS = 3
WHOLE = 16  # training pairs are a multiple of it, so that every step of every epoch is a whole batch
TESTED = 300  # pairs of a held-out fold that are tested, at most
HUMAN, ASSISTANT = "Human:", "Assistant:"
BREAK = "\n\n"
FILES = {
    "hh": ("hh_rlhf_harmless/train", "hh_rlhf_harmless/valid"),
    "oasst": ("oasst_sample/pairs",),
}


@dataclass(frozen=True)
class Pair:
    """Two answers to a prompt.  group: what must not be divided between training and test."""

    prompt: str
    chosen: str
    rejected: str
    group: str

    def row(self) -> dict[str, str]:
        return {"prompt": self.prompt, "chosen": self.chosen, "rejected": self.rejected}


@dataclass
class Pairs:
    """The pairs that one base can read.  left_out: how many were, by reason."""

    pairs: list[Pair] = field(default_factory=list)
    read: int = 0
    left_out: Counter[str] = field(default_factory=Counter)


def read(data: str, tokenizer: Any, context: int) -> Pairs:
    """Return the pairs of a data set that fit the context."""
    found = Pairs()
    turned = {"hh": _harmless, "oasst": _ranked}[data]
    for name in FILES[data]:
        with gzip.open(tasks.SHARED / "data" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
            for line in lines:
                found.read += 1
                turns, answers, group = turned(json.loads(line))
                pair = _fitting(turns, answers, group, tokenizer, context)
                if isinstance(pair, str):
                    found.left_out[pair] += 1
                else:
                    found.pairs.append(pair)
    return found


def _harmless(row: dict[str, Any]) -> tuple[list[str], tuple[str, str], str]:
    """Return the turns before the last answer, the two answers, and the whole prompt as group."""
    chosen, rejected = row["chosen"], row["rejected"]
    mark = BREAK + ASSISTANT
    same = next((k for k, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), len(chosen))
    end = chosen[:same].rindex(mark) + len(mark)
    prompt = chosen[:end]
    turns = [part.strip() for part in prompt.replace(BREAK + HUMAN, f"\0{HUMAN}").split("\0") if part.strip()]
    return turns, (chosen[end:], rejected[end:]), prompt


def _ranked(row: dict[str, Any]) -> tuple[list[str], tuple[str, str], str]:
    """Return the same of a pair of ranked answers; its group is the tree."""
    turns: list[str] = []
    for message in row["prompt"]:
        if message["role"] == "user":
            turns.append(f"{HUMAN} {message['content']}{BREAK}{ASSISTANT}")
        else:
            turns[-1] += f" {message['content']}"
    return turns, (f" {row['chosen']}", f" {row['rejected']}"), f"tree {row['tree']}"


def _fitting(
    turns: Sequence[str], answers: tuple[str, str], group: str, tokenizer: Any, context: int
) -> Pair | str:
    """Return a pair with as many of the last turns as fit, or why there is none."""
    if not all(answer.strip() for answer in answers):
        return "an empty answer"
    if answers[0].strip() == answers[1].strip():
        return "both answers the same"

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]  # type: ignore[no-any-return]

    said = [ids(answer) for answer in answers]
    longest = max(map(len, said)) + 2  # with the start and the end token
    for first in range(len(turns)):
        prompt = BREAK.join(turns[first:])
        asked = ids(prompt)
        if len(asked) + longest > context:
            continue
        if any(ids(prompt + text) != asked + own for text, own in zip(answers, said, strict=True)):
            return "a token across the end of the prompt"
        return Pair(prompt, *answers, group)
    return f"longer than {context} tokens"


def folds(pairs: Sequence[Pair]) -> list[list[Pair]]:
    """Return the pairs in folds of whole groups, always the same ones."""
    groups = sorted({pair.group for pair in pairs})
    random.Random(0).shuffle(groups)
    place = {group: k % FOLDS for k, group in enumerate(groups)}
    return [[pair for pair in pairs if place[pair.group] == fold] for fold in range(FOLDS)]


def stored(data: str, tokenizer: Any, context: int) -> None:
    """Write the files of every fold once: see `folder`."""
    if (folder(data, FOLDS - 1) / "facts.json").exists():
        return
    found = read(data, tokenizer, context)
    parts = folds(found.pairs)
    for fold, test in enumerate(parts):
        train = [pair for other, part in enumerate(parts) if other != fold for pair in part]
        random.Random(fold).shuffle(train)
        del train[len(train) - len(train) % WHOLE :]
        target = folder(data, fold)
        held = random.Random(fold).sample(test, min(TESTED, len(test)))
        _write(target / "pairs.jsonl", (pair.row() for pair in train))
        _write(target / "test.jsonl", (pair.row() for pair in held))
        _write(target / "answers.jsonl", _answers(train))
        facts = {
            "read": found.read, "left_out": dict(found.left_out), "train": len(train), "test": len(held),
            "groups": [pair.group for pair in held],
        }  # fmt: skip
        (target / "facts.json").write_text(json.dumps(facts), encoding="utf-8")


def stored_prompts(data: str, fold: int, tokenizer: Any, room: int) -> None:
    """Write what the pairs of a fold ask, each once, where it fits the room: prompts.jsonl and asked.jsonl.

    The second holds held-out prompts, to be answered before and after.
    """
    for name, target in (("pairs", "prompts"), ("test", "asked")):
        asked = list(dict.fromkeys(row["prompt"] for row in rows(folder(data, fold) / f"{name}.jsonl")))
        sizes = [len(ids) for ids in tokenizer(asked)["input_ids"]]
        kept = ({"prompt": text} for text, size in zip(asked, sizes, strict=True) if size <= room)
        _write(folder(data, fold) / f"{target}.jsonl", kept)


def folder(data: str, fold: int) -> Path:
    """Return the folder of a fold: pairs.jsonl and answers.jsonl to learn from, test.jsonl, facts.json."""
    return WORK / "data" / f"{data}.{fold}"


def facts(data: str, fold: int) -> dict[str, Any]:
    """Return the counts of a fold, and the group of each of its test pairs."""
    found: dict[str, Any] = json.loads((folder(data, fold) / "facts.json").read_text(encoding="utf-8"))
    return found


def rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a file of a fold."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _answers(pairs: Sequence[Pair]) -> Iterator[dict[str, str]]:
    """Yield the chosen answers, each once, for supervised fine-tuning."""
    for prompt, answer in dict.fromkeys((pair.prompt, pair.chosen) for pair in pairs):
        yield {"prompt": prompt, "completion": answer}


def _write(path: Path, rows: Iterator[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
