"""One run, and what it writes for held-out prompts, in this process:
python benchmarks/alignment/one.py NAME"""

import json
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "common"))
import grid
import internals
import work
from columns import RESULTS

import graft

LONGEST = 120  # tokens of an answer; the generator's descriptions have about 45
ROWS = 50  # answers written, or rows read, at a time
WATCHED = 100  # of the held-out prompts, for the points of a curve
SHOWN = 3  # answers that the raw run keeps


def main() -> None:
    work.run_one(__doc__, RESULTS, grid.cells, describe, carry_out)


def describe(cell: grid.Cell) -> dict[str, Any]:
    """Return the run in words and numbers."""
    recipe = settings(cell)
    return {
        "method": cell.setting.method, "seed": cell.seed, "steps": cell.setting.steps,
        "batch_size": recipe.train.batch_size, "lr": recipe.train.lr,
        "beta": recipe.stage_settings.get("beta"),
    }  # fmt: skip


def carry_out(cell: grid.Cell, _: Path) -> dict[str, Any]:
    """Train what is not trained yet, then measure.  The folder that is emptied afterwards is not used."""
    done = trained(cell)
    metrics, timing = (lines(cell.folder / name) for name in ("metrics.jsonl", "timing.jsonl"))
    facts: dict[str, Any] = {
        "step_seconds": [line["seconds"] for line in timing if "seconds" in line],
        "accuracy": done.scores.get("after", {}).get("accuracy"),
        "warning": next((note for note in done.notes if "while the judge" in note), None),
        "curve": curve(metrics, watched(cell.folder)),
    }
    return facts if cell.setting.method == grid.REWARD else facts | measured(cell)


def settings(cell: grid.Cell) -> graft.Recipe:
    """Return the recipe of a run."""
    recipe = internals.read(*grid.recipe(cell))
    if cell.setting.method == grid.REWARD:
        return recipe  # it writes nothing
    often = max(1, cell.setting.steps // grid.POINTS)
    asked = [row["prompt"] for row in prompts()[:WATCHED]]
    train = {"samples": asked, "sample_tokens": LONGEST, "eval_every": often}
    return recipe.model_copy(update={"train": recipe.train.model_copy(update=train)})


def trained(cell: grid.Cell) -> Any:
    """Carry out a run, and before it those that it needs; what is finished is not done again."""
    for needed in cell.needs.values():
        if not (needed.folder / "adapter").exists():
            trained(needed)
    return graft.run(settings(cell))


def watched(folder: Path) -> list[dict[str, Any]]:
    """Return the scores of the greedy answers that a run kept at its evaluations, by step."""
    if not (folder / "samples.md").exists():
        return []
    _, *parts = re.split(
        r"^## step (\d+)\n\n", (folder / "samples.md").read_text(encoding="utf-8"), flags=re.M
    )
    asked = [row["prompt"] for row in prompts()]
    points = []
    for step, said in zip(parts[::2], parts[1::2], strict=True):
        texts = said.split("\n\n---\n\n")[:-1]  # each a prompt and its answer
        answers = [text.removeprefix(prompt) for text, prompt in zip(texts, asked, strict=False)]
        points.append({"step": int(step), **scores(answers)})
    return points


def curve(metrics: Sequence[dict[str, Any]], watched: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the points of a run's curve: where answers were watched, rows evaluated, or answers written to
    learn from; of a run without any of these, every tenth or so of its steps.

    metrics: lines of its metrics.jsonl.  watched: of `watched`.
    """
    points: dict[int, dict[str, Any]] = {}
    chosen = set[int]()
    for line in (*metrics, *watched):
        held_out = {key.removeprefix("eval_"): value for key, value in line.items() if key != "eval_loss"}
        points.setdefault(line["step"], {}).update(held_out)
        if "loss" not in line or "kl" in line:
            chosen.add(line["step"])
    often = max(1, len(points) // grid.POINTS)
    return [point for step, point in sorted(points.items()) if step in (chosen or range(0, step + 1, often))]


def measured(cell: grid.Cell) -> dict[str, Any]:
    """Return the measures of answers to all held-out prompts, and of held-out descriptions."""
    opened = internals.open_model(str(cell.folder))
    asked, facts = prompts(), dict[str, Any]()
    for how, ways in (("greedy", {}), ("sampled", {"do_sample": True, "seed": cell.seed})):
        texts = opened.ask([row["prompt"] for row in asked], max_new_tokens=LONGEST, batch_size=ROWS, **ways)
        tokens = opened.base.tokenizer(texts, add_special_tokens=False)["input_ids"]
        told = scores(texts) | {"tokens": fmean(map(len, tokens))}
        facts |= {f"{how}_{name}": value for name, value in told.items()} | {f"{how}_texts": texts[:SHOWN]}
    recipe = internals.read({"model": "seedling", "data": {"max_length": 256}})
    with opened.base.using(opened.adapter):
        for name, pairs in descriptions().items():
            feed = internals.test_feed(recipe, opened.base, pairs, ROWS)
            facts[f"perplexity_{name}"] = math.exp(internals.mean_loss(recipe, opened.base, feed))
    return facts


def scores(texts: Sequence[str]) -> dict[str, float]:
    """Return the share of answers to the first held-out prompts that satisfy the preference, and their
    coverage."""
    asked = prompts()[: len(texts)]
    columns = {key: [row[key] for row in asked] for key in ("price", "attributes")}
    written = [row["prompt"] for row in asked]
    return {
        "share": fmean(internals.preferences.price_last_reward(written, texts, **columns)),
        "coverage": fmean(internals.preferences.coverage_reward(written, texts, **columns)),
    }


def prompts() -> list[dict[str, Any]]:
    """Return the held-out prompts of products with a price, with what a program checks an answer by."""
    return [row for row in lines(internals.dataset("prompts-held-out")) if row["price"]]


def descriptions() -> dict[str, list[tuple[str, str]]]:
    """Return held-out prompts with the generator's descriptions.

    all: as supervised fine-tuning learns them, in the order of their lists.  kept: those of them that do not
    break the preference: without a price, or with it in the last sentence alone.  chosen: the better ones of
    the held-out pairs.
    """
    rows = lines(internals.dataset("descriptions-held-out"))
    kept = [row for row in rows if _keeps(row)]
    pairs = lines(internals.dataset("preferences-held-out"))
    return {
        "all": [(row["prompt"], row["completion"]) for row in rows],
        "kept": [(row["prompt"], row["completion"]) for row in kept],
        "chosen": [(row["prompt"], row["chosen"]) for row in pairs],
    }


def _keeps(row: dict[str, str]) -> bool:
    prices = [
        line.removeprefix("price: ") for line in row["prompt"].splitlines() if line.startswith("price: ")
    ]
    return all(internals.preferences.keeps(row["completion"], price) for price in prices)


def lines(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file of JSON lines; none if there is no such file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    main()
