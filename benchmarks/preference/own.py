"""A run on answers of the model's own: rewards before and after, its curve, and where its seconds went."""

import json
import statistics
from pathlib import Path
from typing import Any

import grid
import internals
import material
import sums

import graft


def describe(cell: grid.OwnCell) -> dict[str, Any]:
    """Return the run in words and numbers."""
    s = cell.setting
    return {
        "part": s.stage, "data": s.data, "seed": cell.seed, "steps": s.steps, "batch_size": s.batch_size,
        "lr": s.lr, "context": s.context, "new": s.new, "train": len(material.rows(cell.rows("prompts"))),
        **s.settings,
    }  # fmt: skip


def carry_out(cell: grid.OwnCell, folder: Path) -> dict[str, Any]:
    """Train by Graft; answer held-out prompts before and after."""
    recipe = internals.read(cell.recipe(folder))
    before = measured(cell, recipe, internals.open_model(str(cell.tuned)))
    graft.run(recipe)
    after = measured(cell, recipe, internals.open_model(recipe.output))
    return {"before": before, "after": after, "curve": curve(folder)}


def measured(cell: grid.OwnCell, recipe: graft.Recipe, opened: Any) -> dict[str, float]:
    """Return {reward, kl, length, ended} of sampled answers to held-out prompts, or the share of right sums.

    Sums are answered greedily, which is how they would be used.
    """
    rows: list[dict[str, Any]] = list(material.rows(cell.rows("asked")))
    if cell.setting.data != "sums":
        return internals.online_scores(opened, recipe, cell.rows("asked"), grid.TESTED)
    texts = opened.ask([row["prompt"] for row in rows], max_new_tokens=cell.setting.new, batch_size=50)
    points = sums.right(texts, [row["total"] for row in rows])
    return {"right": statistics.mean(points), "answers": len(points)}


def curve(run: Path) -> list[dict[str, float]]:
    """Return what a run tells of each iteration, with the seconds of writing and of learning."""
    iterations: list[dict[str, float]] = []
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    times = [json.loads(line) for line in (run / "timing.jsonl").read_text(encoding="utf-8").splitlines()]
    seconds = {line["step"]: line for line in times if "step" in line}
    for line in lines:
        if "loss" not in line:
            continue
        spent = seconds[line["step"]]
        if "reward" in line:
            iterations.append({key: line[key] for key in ("reward", "kl", "length", "ended", "entropy")})
            iterations[-1] |= {"rollout_s": spent["rollout_seconds"], "update_s": 0.0}
        iterations[-1]["update_s"] += spent["seconds"] - spent.get("rollout_seconds", 0.0)
    return iterations
