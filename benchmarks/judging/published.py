"""What the QLoRA paper reports of its judgements (Dettmers et al. 2023, arXiv 2305.14314), and its published
verdicts.

The Elo ratings are those of its table 1 (human raters and GPT-4 on the 80 Vicuna prompts) and of its table
with the 953 OASST prompts; the marks are those of its table of scores relative to ChatGPT.
"""

import gzip
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "common"))
import internals
import tasks

FOLDER = tasks.SHARED / "data" / "qlora_judgments"
VERDICTS = {1: "1", 2: "2", 3: "tie", -1: None}  # of its files; -1: no verdict could be read

ELO_VICUNA = {
    "gpt-4": 1348, "65b-guanaco": 1022, "30b-guanaco": 992, "vicuna-13b": 974, "gpt-3.5": 966,
    "13b-guanaco": 916, "bard": 902, "7b-guanaco": 879,
}  # fmt: skip
ELO_OASST = {
    "gpt-4": 1294, "gpt-3.5": 1015, "65b-guanaco": 1008, "30b-guanaco": 1002, "vicuna-13b": 936,
    "13b-guanaco": 885, "7b-guanaco": 860,
}  # fmt: skip
ELO_HUMAN = {
    "gpt-4": 1176, "65b-guanaco": 1023, "7b-guanaco": 1010, "30b-guanaco": 1009, "vicuna-13b": 984,
    "13b-guanaco": 975, "gpt-3.5": 916, "bard": 909,
}  # fmt: skip
MARKS = {
    "gpt-4": 114.5, "65b-guanaco": 99.3, "30b-guanaco": 97.8, "vicuna-13b": 94.9, "bard": 94.8,
    "13b-guanaco": 90.4, "7b-guanaco": 87.0,
}  # fmt: skip
KENDALL, SPEARMAN = 0.43, 0.55  # between the systems' ranks by humans and by GPT-4
KAPPA_HUMAN_GPT4, KAPPA_HUMANS = 0.25, 0.42  # of single answers


def rows(name: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of one of the files."""
    with gzip.open(FOLDER / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def verdicts(name: str, prompt: str) -> list[Any]:
    """Return the verdicts of a file as judgements, with the lengths of the answers where they are known.

    prompt: the column that names the prompt.
    """
    lengths = {(row["model"], row["question_id"]): len(row["text"]) for row in rows("vicuna_generations")}
    judgements = []
    for row in rows(name):
        both = [lengths.get((row[place], row.get("question_id"))) for place in ("first", "second")]
        characters = None if None in both else tuple(both)
        judgements.append(
            internals.Judgement(
                str(row[prompt]), row["first"], row["second"], VERDICTS[row["verdict"]], None, characters
            )
        )
    return judgements


def marked() -> list[Any]:
    """Return the marks out of ten as judgements; those that nobody could read have none."""
    return [
        internals.Judgement(
            str(row["question_id"]),
            row["first"],
            row["second"],
            None,
            tuple(row["scores"]) if min(row["scores"]) >= 0 else None,
        )
        for row in rows("vicuna_relative")
    ]
