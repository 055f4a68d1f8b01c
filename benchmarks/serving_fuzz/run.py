"""Attack a server of the embedded model and six adapters with wrong and right requests, and see what is left.

    python benchmarks/serving_fuzz/run.py [--cases 50000] [--streams 5000] [--seed 0] [--json FILE]

Cases are what schemathesis makes from the OpenAPI document, half of them right and half wrong; streams are
requests with some bytes changed, over bare sockets. Ends with 1 where a case ended in an answer that the
document does not tell, in a 5xx other than 503, or not within 5 s; and where the golden answers of the base
and every adapter, /health or the count of texts that are waited for are not what they were. Only 127.0.0.1 is
ever called.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "tests" / "support"))

import requests
from api_fuzz import Found, fuzz
from openai_server import ADMIN, Keys, Limits, listening, load, served_app
from raw_requests import attack
from served import write_adapters

WITHIN_S = 5.0
LIMITS = Limits(max_tokens=4, head_s=1.0, body_s=1.0, idle_s=2)
AT_ONCE = 2_000  # cases between two looks at the memory


def golden(url: str, names: list[str]) -> list:
    """Return greedy answers of the base and every adapter, with log-probabilities, and what /health says."""
    answers = []
    for name in ["seedling", *names]:
        asked = {"model": name, "prompt": "The kettle", "max_tokens": 4, "temperature": 0, "logprobs": 2}
        answer = requests.post(f"{url}/v1/completions", json=asked, timeout=60).json()
        answers.append(answer.get("choices", answer))
    return [*answers, requests.get(f"{url}/health", timeout=60).json()]


def memory_mib() -> float:
    """Return the memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def load_all(url: str, names: list[str]) -> None:
    """Load all adapters, of which the cases put some away."""
    key = {"Authorization": f"Bearer {ADMIN}"}
    for name in names:
        requests.post(f"{url}/v1/load_lora_adapter", json={"lora_name": name}, headers=key, timeout=60)


def send_cases(url: str, names: list[str], count: int, seed: int) -> tuple[Found, list[float]]:
    """Send so many cases; return what became of them, and the memory after each two thousand."""
    found, memory = Found(), []
    while found.cases < count:
        part = fuzz(
            url,
            ADMIN,
            ["seedling", *names],
            min(AT_ONCE, count - found.cases),
            first_seed=seed + found.cases,
            within_s=WITHIN_S,
        )
        for fault, times in part.faults.items():
            print(f"{times} x {fault}", flush=True)
        found.codes += part.codes
        found.faults += part.faults
        found.hung += part.hung
        found.worst_s = max(found.worst_s, part.worst_s)
        load_all(url, names)
        memory.append(memory_mib())
        print(
            f"{found.cases:7,} cases  {dict(sorted(found.codes.items()))}  {memory[-1]:.0f} MiB", flush=True
        )
    return found, memory


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=50_000)
    parser.add_argument("--streams", type=int, default=5_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="keep the raw runs here")
    how = parser.parse_args()
    base, began = load("seedling", dtype="fp32"), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        names = write_adapters(base, Path(folder), 6)
        with (
            served_app(
                base, Path(folder), limits=LIMITS, keys=Keys.of(None, ADMIN), rows=8, waiting=64
            ) as app,
            listening(app, LIMITS) as url,
        ):
            before = golden(url, names)
            raw = asyncio.run(attack(int(url.rpartition(":")[2]), how.streams, how.seed, within_s=WITHIN_S))
            print(f"{how.streams:7,} streams  {raw['codes']}  worst {raw['worst_s']:.2f} s", flush=True)
            found, memory = send_cases(url, names, how.cases, how.seed)
            same, left = golden(url, names) == before, dict(app.state.served.by_key)
    codes = found.codes + Counter(raw["codes"])
    defects = {code: count for code, count in codes.items() if code >= 500 and code != 503}
    facts = {
        "cases": found.cases,
        "streams": how.streams,
        "codes": dict(sorted(found.codes.items())),
        "codes of streams": raw["codes"],
        "defects": defects,
        "faults": dict(found.faults.most_common(20)),
        "hung": [*found.hung, *raw["hung"]],
        "longest wait, s": round(max(found.worst_s, raw["worst_s"]), 3),
        "golden answers unchanged": same,
        "texts still counted": left,
        "memory, MiB": [round(value) for value in memory],
        "seconds": round(time.monotonic() - began),
    }
    if how.json:
        how.json.write_text(json.dumps(facts, indent=1))
    print(json.dumps(facts, indent=1))
    return int(bool(defects or found.faults or facts["hung"] or left or not same))


if __name__ == "__main__":
    sys.exit(main())
