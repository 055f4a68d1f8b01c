"""Peak memory of preparing a file that is larger than what may be held, in a process of its own.

    python benchmarks/streaming.py --size 300

Rows are generated: prompts and completions of made-up words. `prepare` reads, checks, splits, encodes and
keeps them; the peak is the most resident memory of the process, beside what it had before it began.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

MIB = 1 << 20
WORDS = 20_000

PROGRAM = """
import json, resource, sys
from types import SimpleNamespace as S
from transformers import AutoTokenizer
from graft import seedling
from graft.data import prepare
from graft.stages.stage import find

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20

tokenizer = AutoTokenizer.from_pretrained(seedling.FOLDER)
settings = S(train=sys.argv[1], eval=0.05, test=None, format="auto", max_length=256, pack=True, columns={},
             bad_rows="strict", template=None, control_tokens=False, limit=None, tag_names=[], seed=0)
if len(sys.argv) > 2:  # what may be in memory of rows, and of an array
    from graft.data import row_store, scratch, token_file
    row_store.MOST = scratch.MOST = token_file.MOST = int(sys.argv[2])
    scratch.BLOCK = int(sys.argv[2]) // 8
before = resident()
data = prepare(settings, tokenizer, find("sft")(), family="causal")
facts = {"before": before, "peak": peak(), "rows": len(data.train), "tokens": data.report.tokens,
         "first": data.train[0].ids[:8], "last": data.train[-1].ids[:8]}
print(json.dumps(facts))
"""


def write(path: Path, size: int, seed: int = 0) -> None:
    """Write a file of `size` bytes or a little more."""
    draw = random.Random(seed)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(WORDS)]
    written, number = 0, 0
    with open(path, "w", encoding="utf-8") as stream:
        while written < size:
            number += 1
            prompt = f"Row {number}. " + " ".join(draw.choices(words, k=draw.randint(5, 30)))
            answer = " ".join(draw.choices(words, k=draw.randint(10, 80)))
            written += stream.write(json.dumps({"prompt": prompt, "completion": answer}) + "\n")


def measure(file: Path, cache: Path, most: int | None = None) -> dict[str, float]:
    """Prepare a file in a fresh process; return what it printed.  most: bytes held in memory."""
    environment = os.environ | {"GRAFT_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(file), *([] if most is None else [str(most)])],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, default=300, help="of the file, in MB")
    parser.add_argument("--folder", type=Path, help="where file and cache lie; a temporary folder by default")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as home:
        file = Path(home) / "rows.jsonl"
        write(file, given.size * 10**6)
        print(f"file  {file.stat().st_size / MIB:,.0f} MiB")
        for kind in ("fresh", "from the cache"):
            facts = measure(file, Path(home) / "cache")
            grown = facts["peak"] - facts["before"]
            print(
                f"{kind:<15} {facts['rows']:,} rows   {facts['tokens']:,} tokens   grown by {grown:,.0f} MiB "
                f"({grown * MIB / file.stat().st_size:.0%} of the file)   "
                f"first {facts['first']}   last {facts['last']}"
            )


if __name__ == "__main__":
    main()
