"""Notice that a run has made its loss worse: a learning rate that is too high ends in a useless adapter."""

import json
from pathlib import Path
from statistics import fmean

ENDS = 10  # steps at either end whose mean loss is compared; a fifth of a short run
RISE = 1.0, 0.5  # nats, and share of the first loss, by which it must have risen; noise is far less


def worsened(metrics: Path) -> str:
    """Return in words that the loss of a run has risen; "" if it has not.  metrics: its metrics.jsonl."""
    losses = _losses(metrics)
    count = min(ENDS, len(losses) // 5)
    if not count:
        return ""
    first, last = fmean(losses[:count]), fmean(losses[-count:])
    if first <= 0 or last - first <= max(RISE[0], RISE[1] * first):
        return ""
    return (
        f"the loss rose from {first:.3g} in the first {count} steps to {last:.3g} in the last {count}: the "
        "adapter is worse than none; train again with a lower train.lr"
    )


def _losses(metrics: Path) -> list[float]:
    """Return the loss of every step, without those that a damaged line would tell."""
    losses: list[float] = []
    with open(metrics, encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                loss = json.loads(line).get("loss")
            except (ValueError, AttributeError):
                continue
            if isinstance(loss, int | float):
                losses.append(loss)
    return losses
