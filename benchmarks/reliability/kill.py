"""Kill real runs with SIGKILL at random moments: does the same command end with the bytes of an undisturbed
run?

    python benchmarks/reliability/kill.py               # all kinds of runs, on the seedling
    python benchmarks/reliability/kill.py --only lora-fp32 --kills 30 --seed 7
    python benchmarks/reliability/kill.py --only reward dpo ppo grpo

`make faults` runs chains of all kinds, too (tests/faults/kills.py), and puts what came of them into
results.csv.

Each kind of run is done twice: once undisturbed, once killed `--kills` times, one of these inside a commit.
Of runs that write the answers they learn from, one more is killed inside the commit of such answers. Printed
for each: the kills, how many of them came after the first commit, how many while answers were written, the
most steps that were done twice, whether adapter SHA-256 (with that of PPO's values) and metrics file are
equal, and the steps it went on from. Exit 1 if they differ, if a run was killed fewer times than asked, or if
more than `save_every` steps were lost.
"""

import argparse
import hashlib
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

DROPOUT = {"name": "lora", "r": 8, "lora_dropout": 0.05}
PREFERRED = {"data": {"train": "seedling:preferences"}, "dtype": "fp32", "method": DROPOUT}
# Short answers, paid by a program, so that a run of many iterations takes a minute.
ASKED = {
    "data": {"train": "seedling:prompts"},
    "dtype": "fp32",
    "method": {"name": "lora", "r": 8},
    "stage": {"rewards": "graft.seedling.preferences:coverage_reward", "prompts": 16, "max_new_tokens": 16},
}
KINDS = {
    "lora-fp32": {"dtype": "fp32", "method": DROPOUT},
    "lora-bf16": {"dtype": "bf16", "method": DROPOUT},
    "qlora": {"method": {"name": "qlora", "r": 8}},
    "qlora-paged": {"method": {"name": "qlora", "r": 32},
                    "train": {"optimizer": "paged_adamw", "paged_budget_mb": 1}},
    "full": {"dtype": "fp32", "method": {"name": "full"}},
    "padded": {"dtype": "fp32", "method": DROPOUT, "data": {"pack": False}},
    "pretraining": {"dtype": "fp32", "method": {"name": "full"}, "stage": "pretrain",
                    "data": {"train": "seedling:text-held-out", "eval": 0.02, "max_length": 64}},
    "classification": {"dtype": "fp32", "method": DROPOUT, "stage": "classify",
                       "data": {"train": "seedling:shelves", "max_length": 64}},
    "reward": PREFERRED | {"stage": "reward"},
    "dpo": PREFERRED | {"stage": "dpo"},
    "ppo": ASKED | {"stage": {"name": "ppo", "epochs": 2, "kl_target": 1.0, **ASKED["stage"]}},
    "grpo": ASKED | {"stage": {"name": "grpo", "epochs": 2, "group": 4, **ASKED["stage"]}},
}  # fmt: skip
Start = Callable[..., Any]  # (path, program) -> a process with poll, kill and wait, as Popen has them
UPDATES = 4  # steps of an iteration: 2 passes over 16 prompts, 8 a step
ONLINE = ("ppo", "grpo")
COMMAND = "import sys; sys.argv = ['graft', 'train', {recipe!r}]\nfrom graft.cli import main; main()"
# The process dies at the k-th operation of its second commit to this folder of the run. This text wraps
# graft.storage from outside, so that the product needs no hook for it.
INSIDE = """
import os, signal
from graft import storage

class Os:
    left = None
    def __getattr__(self, name):
        real = getattr(os, name)
        if self.left is None or name not in ("open", "mkdir", "write", "fsync", "rename"):
            return real
        self.left -= 1
        return real if self.left else os.kill(os.getpid(), signal.SIGKILL)

storage.writes.os, commit, seen = Os(), storage.commit, []
def counted(target, *rest):
    seen.append(target)
    if target.parent.name == {where!r} and sum(t.parent.name == {where!r} for t in seen) == 2:
        storage.writes.os.left = {k}
    return commit(target, *rest)
storage.commit = counted
"""


class Lost(Exception):
    """A killed run that cannot go on."""


@dataclass
class Trial:
    """A killed run.  late: kills after the first commit; writing: while answers were written; resumed: steps
    it went on from; repeated: steps done twice."""

    kills: int = 0
    late: int = 0
    writing: int = 0
    resumed: list[int] = field(default_factory=list)
    repeated: list[int] = field(default_factory=list)


def recipe(folder: Path, kind: str, options: argparse.Namespace) -> Path:
    """Write the recipe of one kind into `folder` and return its path; its run is `folder/run`."""
    own = KINDS[kind]
    learns = "stage" not in own  # from answers, so that their perplexity and samples can be told
    writes = kind not in ("reward", "classification")
    keys = {
        "model": options.model,
        "train": {
            "epochs": 2, "max_steps": options.steps, "batch_size": 8, "micro_batch_size": 4,
            "save_every": options.save_every, "eval_every": 3 * options.save_every,
            "neftune_alpha": 2.0 if learns else 0.0,
            "samples": ["Describe: name: Alto"] if writes else [], "sample_tokens": 8,
        },
        "evaluate": {"limit": 16} | ({"metrics": ["perplexity"]} if learns else {}),
        "output": str(folder / "run"),
    }  # fmt: skip
    rows = {"train": options.data, "eval": 0.02, "limit": options.steps * 8, "max_length": 192}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.yaml"
    laid_over = {"data": rows | own.get("data", {}), "train": keys["train"] | own.get("train", {})}
    path.write_text(yaml.safe_dump(keys | own | laid_over))
    return path


def start(path: Path, before: str = "") -> subprocess.Popen:
    """Start `graft train RECIPE`, its output in `talk.txt`.  before: a program that it runs first."""
    code = before + COMMAND.format(recipe=str(path))
    with open(path.parent / "talk.txt", "w") as talk:
        return subprocess.Popen([sys.executable, "-c", code], stdout=talk, stderr=talk)


def steps_done(folder: Path) -> int:
    """Return the last step in the metrics file, 0 if there is none."""
    metrics = folder / "run" / "metrics.jsonl"
    found = re.findall(r'"step": (\d+)', metrics.read_text()) if metrics.exists() else []
    return int(found[-1]) if found else 0


def unfinished(folder: Path) -> int:
    """Return the last step in the metrics file; 0 if the run had finished when its process was killed."""
    return 0 if (folder / "run" / "finished.json").exists() else steps_done(folder)


def has_checkpoint(folder: Path) -> bool:
    """Return whether the run has a checkpoint."""
    return any((folder / "run" / "checkpoints").glob("step-*"))


def resumed_from(folder: Path) -> int:
    """Return the step of `resumed from step N` in the output, 0 if the process began anew."""
    found = re.search(r"resumed from step (\d+)", (folder / "talk.txt").read_text())
    return int(found[1]) if found else 0


def writes(folder: Path) -> bool:
    """Return whether a run has done the last step of an iteration, and not kept the answers of the next."""
    iteration, step = divmod(steps_done(folder), UPDATES)
    return not step and not (folder / "run" / "rollouts" / f"{iteration:06d}").exists()


def kill(process: Any, folder: Path, target: int, pause_s: float) -> bool:
    """Kill the process some time after it wrote step `target`; return False if the run ended before."""
    begun = resumed_from if has_checkpoint(folder) else steps_done
    while process.poll() is None and not (begun(folder) and steps_done(folder) >= target):
        time.sleep(0.002)
    time.sleep(pause_s)
    process.kill()
    return process.wait() == -9


def disturbed(path: Path, options: argparse.Namespace, chance: random.Random, start: Start = start) -> Trial:
    """Start the run of `path` and kill it again and again, then let it finish.

    start: starts the run of a path, after a program. Raises Lost if the run could not go on.
    """
    trial = Trial()
    folder = path.parent
    online = folder.parent.name in ONLINE
    gap = options.steps / (options.kills + 1)
    folders = ["checkpoints", "rollouts"] if online else ["checkpoints"]
    # Which of the kills are inside a commit.
    inside = dict(zip(chance.sample(range(1, options.kills), len(folders)), folders, strict=True))
    longest = 1.5 if online else 0.3  # so that kills come while answers are written, and between steps
    for number in range(options.kills):
        before = unfinished(folder)
        if number in inside:
            process = start(path, INSIDE.format(k=chance.randrange(2, 12), where=inside[number]))
            killed = process.wait() == -9
        else:
            process = start(path)
            target = max(before + 1, int(gap * (number + chance.random())))
            killed = kill(process, folder, min(target, options.steps - 1), chance.uniform(0.0, longest))
        note(trial, folder, before)
        if not killed:
            break
        trial.kills += 1
        trial.late += has_checkpoint(folder)
        trial.writing += online and writes(folder)
    before = unfinished(folder)
    if start(path).wait() != 0:
        raise Lost(f"the run could not go on: {(folder / 'talk.txt').read_text()[-2000:]}")
    note(trial, folder, before)
    return trial


def note(trial: Trial, folder: Path, before: int) -> None:
    """Note where the process that has just ended went on from; before: the last step written when it
    started."""
    step = resumed_from(folder)
    if step:
        trial.resumed.append(step)
    if step or before:
        trial.repeated.append(max(0, before - step))


def digests(folder: Path) -> tuple[str, str]:
    """Return the SHA-256 of the adapter, with the values that were trained beside it, and of the metrics."""
    run = folder / "run"
    trained = [run / name / "adapter_model.safetensors" for name in ("adapter", "values")]
    tensors = b"".join(path.read_bytes() for path in trained if path.exists())
    return tuple(hashlib.sha256(data).hexdigest() for data in (tensors, (run / "metrics.jsonl").read_bytes()))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--model", default="seedling")
    arguments.add_argument("--data", default="seedling:descriptions")
    arguments.add_argument("--only", choices=KINDS, nargs="*", default=list(KINDS))
    arguments.add_argument("--kills", type=int, default=10)
    arguments.add_argument("--steps", type=int, default=120)
    arguments.add_argument("--save-every", type=int, default=10)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--folder", help="keep the runs there, to be looked at")
    options = arguments.parse_args()
    chance = random.Random(options.seed)
    failed = False
    print(
        f"{'run':<11}{'kills':>6}{'late':>6}{'writing':>9}{'most repeated':>15}  "
        f"{'adapter':<8}{'metrics':<8}resumed from"
    )
    with tempfile.TemporaryDirectory() as temporary:
        for kind in options.only:
            calm = recipe(Path(options.folder or temporary, kind, "calm"), kind, options)
            if start(calm).wait() != 0:
                sys.exit((calm.parent / "talk.txt").read_text()[-2000:])
            path = recipe(Path(options.folder or temporary, kind, "killed"), kind, options)
            trial = disturbed(path, options, chance)
            same = [a == b for a, b in zip(digests(calm.parent), digests(path.parent), strict=True)]
            lost = max(trial.repeated)
            failed |= not all(same) or lost > options.save_every or trial.kills < options.kills
            words = ["equal" if equal else "DIFFER" for equal in same]
            resumed = " ".join(map(str, trial.resumed))
            counts = f"{trial.kills:>6}{trial.late:>6}{trial.writing:>9}{lost:>15}"
            print(f"{kind:<11}{counts}  {words[0]:<8}{words[1]:<8}{resumed}", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
