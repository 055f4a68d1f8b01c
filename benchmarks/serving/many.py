"""Two hundred adapters of five kinds on one NF4 base: what they answer together, and the memory they take.

    python benchmarks/serving/many.py                              200 on the seedling
    python benchmarks/serving/many.py --adapters 20 --model DIR    others

Eight requests for eight different adapters are sent at once, until every adapter has answered. Each answer is
compared with what the adapter writes alone in this process: the text, and the log-probability of every token.
"""

import argparse
import asyncio
import json
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "common"))
import asking
import places
import results

PROMPTS = ("The kettle", "Write a product", "Description:", "A lamp that")
NEW, TOGETHER = 12, 8


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--adapters", type=int, default=200)
    parser.add_argument("--model", default="seedling", help="a folder, or seedling")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    import graft

    folder = places.empty(results.RAW.parent / "serving" / "many")
    base = graft.load(options.model, quant="nf4", dtype="fp32")
    names = places.write_adapters(base, folder / "root", options.adapters)
    plan = [(name, PROMPTS[number % len(PROMPTS)]) for number, name in enumerate(names)]
    wanted = [alone(base, folder / "root" / name, prompt) for name, prompt in plan]
    log = folder / "log.txt"
    place = places.graft(
        options.model,
        log,
        "--quant",
        "nf4",
        "--dtype",
        "fp32",
        "--adapters",
        str(folder / "root"),
        threads=options.threads,
    )
    try:
        asyncio.run(asked(place, [("base", PROMPTS[0])] * TOGETHER))  # what the first requests set up
        before = place.rss
        got = asyncio.run(asked(place, plan))
        after, found = place.rss, place.metrics()
    finally:
        place.stop()
    apart = [
        max((abs(a - b) for a, b in zip(ours[1], theirs[1], strict=False)), default=0.0)
        for ours, theirs in zip(got, wanted, strict=True)
    ]
    other = [plan[i][0] for i, (a, b) in enumerate(zip(got, wanted, strict=True)) if a[0] != b[0]]
    on_disk = sum(path.stat().st_size for path in folder.glob("root/*/*.safetensors"))
    facts: dict[str, Any] = {
        "what": "many", "model": Path(options.model).name, "adapters": len(names),
        "other": other, "apart": max(apart), "tensors_mib": found["graft_adapter_bytes"] / 2**20,
        "files_mib": on_disk / 2**20,
        "rss_before_mib": before / 2**20, "rss_after_mib": after / 2**20,
        "kib_each": (after - before) / len(names) / 1024, "machine": results.machine(),
    }  # fmt: skip
    trial = options.adapters < 200
    raw = results.RAW / "serving" / ("trial" if trial else "") / f"many-{facts['model']}.json"
    results.write_raw(raw, facts)
    print(json.dumps({key: value for key, value in facts.items() if key != "machine"}, indent=1))
    return int(bool(other) or facts["apart"] > 1e-5)


def alone(base: Any, folder: Path, prompt: str) -> tuple[str, list[float]]:
    """Return what an adapter writes alone, and the log-probabilities of its tokens."""
    base.load_adapter(folder, "alone")
    (found,) = base.complete([prompt], ["alone"], max_new_tokens=NEW, logprobs=0)
    base.detach("alone")
    return found.text, found.logprobs


async def asked(place: places.Place, plan: list[tuple[str, str]]) -> list[tuple[str, list[float]]]:
    """Ask in groups of eight at once; return texts and log-probabilities in order."""
    answers: list[tuple[str, list[float]]] = []
    for start in range(0, len(plan), TOGETHER):
        group = plan[start : start + TOGETHER]
        for found in await asyncio.gather(*(one(place, name, prompt) for name, prompt in group)):
            answers.append(found)
    return answers


async def one(place: places.Place, name: str, prompt: str) -> tuple[str, list[float]]:
    body = {"model": name, "prompt": prompt, "temperature": 0, "max_tokens": NEW, "logprobs": 0}
    answer = await asking.ask(place.port, "/v1/completions", body)
    if answer.status != 200:
        raise RuntimeError(f"{name}: {answer.status} {answer.error}")
    return answer.text, answer.logprobs


if __name__ == "__main__":
    sys.exit(main())
