"""Rate the models of the QLoRA paper by its published judgements, and tournaments whose truth is known.

    python benchmarks/judging/run.py                     every part that has no result
    python benchmarks/judging/run.py --only vicuna       one part
    python benchmarks/judging/run.py --again             all of them, new
    python benchmarks/collect.py judging                 raw runs -> results.csv
    python benchmarks/judging/table.py                   results.csv -> RESULTS.md

    vicuna      Elo and Bradley-Terry of 8 models on 80 prompts, the judge's biases
    oasst       Elo and Bradley-Terry of 7 models on 953 prompts
    marks       marks out of ten, in per cent of ChatGPT's
    agreement   between humans and GPT-4, and between GPT-4's two orders
    coverage    how often 95 % intervals contain the truth: 200 tournaments of known strengths

Raw runs go to runs/bench/judging/PART.json.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "common"))
import internals
import numpy as np
import published
import simulated
import torch
from columns import RESULTS
from results import Row, machine, write_raw

ORDERS = 10_000
SHORT = 500  # games of an order after which the paper's ratings of the Vicuna prompts are met
TOURNAMENTS = 200


def ratings(judgements: list[Any], elo: dict[str, int]) -> Iterator[Row]:
    """Yield the ratings of every model, each judgement a game as in the paper, beside those of the paper."""
    games = internals.games(judgements, averaged=False)
    averaged = internals.games(judgements)
    begun = time.perf_counter()
    over_orders = internals.elo(games, orders=ORDERS)
    yield {"measure": "seconds of Elo", "name": f"{ORDERS} orders", "value": time.perf_counter() - begun}
    yield {"measure": "games", "name": "all", "value": len(games.a)}
    over_prompts = internals.elo_over_prompts(games, orders=100)
    short = internals.elo(games, orders=ORDERS, length=SHORT)
    likely = internals.bradley_terry(averaged)
    for i, name in enumerate(games.models):
        paper = {"published": elo[name]}
        both = {"low": over_prompts.low[i], "high": over_prompts.high[i]}
        yield {"measure": "Elo", "name": name, "value": over_orders.rating[i], **both, **paper}
        one = {"low": over_orders.low[i], "high": over_orders.high[i]}
        yield {"measure": "Elo, one order", "name": name, "value": over_orders.rating[i], **one}
        yield {"measure": f"Elo, {SHORT} games", "name": name, "value": short.rating[i], **paper}
        ends = {"low": likely.low[i], "high": likely.high[i]}
        yield {"measure": "Bradley-Terry", "name": name, "value": likely.rating[i], **ends, **paper}


def biases(judgements: list[Any]) -> Iterator[Row]:
    """Yield what sways the judge."""
    order = internals.order_bias(judgements)
    yield _row("points of the answer shown first", order.first)
    yield _row("pairs with one verdict in both orders", order.consistent)
    yield {"measure": "no verdict", "name": "all", "value": sum(one.verdict is None for one in judgements)}
    if (length := internals.length_bias(judgements)) is not None:
        yield _row("points of the longer answer", length)


def vicuna() -> Iterator[Row]:
    judgements = published.verdicts("vicuna_pairwise", "question_id")
    yield from ratings(judgements, published.ELO_VICUNA)
    yield from biases(judgements)


def oasst() -> Iterator[Row]:
    judgements = published.verdicts("oa_pairwise", "message_id")
    yield from ratings(judgements, published.ELO_OASST)
    yield from biases(judgements)


def marks() -> Iterator[Row]:
    for name, found in internals.relative_scores(published.marked(), "gpt-3.5").items():
        if name in published.MARKS:  # the others are no models of the paper's table
            yield {**_row("marks, % of ChatGPT's", found.value, name), "published": published.MARKS[name]}
            yield {"measure": "shown first", "name": name, "value": found.first}
            yield {"measure": "shown second", "name": name, "value": found.second}


def agreement() -> Iterator[Row]:
    """Yield the agreement that the published numbers allow: between the paper's two columns of Elo.

    The votes of single humans are not at hand, so neither are the paper's two kappas.
    """
    for title, left_out in (("8 systems", ()), ("7 systems, without GPT-4", ("gpt-4",))):
        names = [name for name in published.ELO_HUMAN if name not in left_out]
        columns = [[elo[name] for name in names] for elo in (published.ELO_HUMAN, published.ELO_VICUNA)]
        kendall, spearman = internals.kendall_tau(*columns), internals.spearman(*columns)
        yield {"measure": "Kendall", "name": title, "value": kendall, "published": published.KENDALL}
        yield {"measure": "Spearman", "name": title, "value": spearman, "published": published.SPEARMAN}
    yield {"measure": "Fleiss", "name": "humans and GPT-4", "published": published.KAPPA_HUMAN_GPT4}
    yield {"measure": "Fleiss", "name": "humans", "published": published.KAPPA_HUMANS}
    for name, prompt in (("vicuna_pairwise", "question_id"), ("oa_pairwise", "message_id")):
        value = internals.fleiss_kappa(_both_orders(published.verdicts(name, prompt)))
        yield {"measure": "Fleiss", "name": f"GPT-4 in two orders, {name}", "value": value}


def _both_orders(judgements: list[Any]) -> list[list[int]]:
    """Return how often the two orders of a pair say win, tie and loss of its first model."""
    counts: dict[tuple[Any, Any], list[int]] = {}
    for one in judgements:
        if (points := one.points_of_pair) is not None:
            counts.setdefault((one.prompt, one.pair), [0, 0, 0])[int(2 * points)] += 1
    return [row for row in counts.values() if sum(row) == 2]


def coverage() -> Iterator[Row]:
    """Yield how often the intervals contain the strengths, of all models and of each."""
    true = simulated.STRENGTHS
    inside: dict[str, list[Any]] = {"Bradley-Terry": [], "Elo": []}
    for seed in range(TOURNAMENTS):
        games = internals.games(simulated.tournament(seed))
        truth = np.array([true[name] for name in games.models])
        for name, found in (
            ("Bradley-Terry", internals.bradley_terry(games, seed=seed)),
            ("Elo", internals.elo_over_prompts(games, resamples=400, orders=20, seed=seed)),
        ):
            inside[name].append((found.low <= truth) & (truth <= found.high))
    for name, hits in inside.items():
        share = np.array(hits)
        yield {"measure": f"{name}, % inside", "name": "all models", "value": 100 * float(share.mean())}
        for model, own in zip(games.models, share.mean(0), strict=True):
            yield {"measure": f"{name}, % inside", "name": model, "value": 100 * float(own)}


def _row(measure: str, estimate: Any, name: str = "all") -> Row:
    """Return an estimate with its interval as a row."""
    return {
        "measure": measure,
        "name": name,
        "value": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
    }


PARTS = {part.__name__: part for part in (vicuna, oasst, marks, agreement, coverage)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=list(PARTS), nargs="+", default=list(PARTS))
    parser.add_argument("--again", action="store_true", help="also what has a result")
    options = parser.parse_args()
    torch.set_num_threads(1)  # nothing here needs torch: this is what the raw runs say
    known = {} if options.again else RESULTS.known(RESULTS.raw)
    for part in options.only:
        if part not in known:
            load, begun = os.getloadavg()[0], time.perf_counter()
            rows = [{k: _plain(v) for k, v in row.items()} for row in PARTS[part]()]
            facts = {"wall_s": time.perf_counter() - begun, "load": [load, os.getloadavg()[0]]}
            write_raw(
                RESULTS.raw / f"{part}.json", {"part": part, "rows": rows, **facts, "machine": machine()}
            )
            print(f"done  {part}  {facts['wall_s']:.0f} s", flush=True)


def _plain(value: Any) -> Any:
    return float(value) if isinstance(value, np.floating) else value


if __name__ == "__main__":
    main()
