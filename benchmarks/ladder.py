"""Compare the memory of a training step of ladder-side tuning with LoRA's: a Llama of 40 M random parameters,
fp32.

    python benchmarks/ladder.py         about half a minute on one thread; exit 1 if the ladder is not smaller

kept: what autograd keeps of the forward, without parameters.  peak: the most that the tensors of forward and
backward take at once.  resident: growth of the process's high-water mark.  Every row is measured in a process
of its own.
"""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent / "common"))
import internals
import torch

import graft

LLAMA = {"model_type": "llama", "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 10,
         "num_attention_heads": 8, "vocab_size": 8192, "tie_word_embeddings": False}  # fmt: skip
METHODS = {"lora": graft.LoRA, "ladder": graft.Ladder}
ROWS, LENGTH = (2, 8), 128
FACTS = ("kept", "peak", "resident")


def step(method: str, rows: int) -> dict[str, float]:
    """Do one forward and backward at the method's defaults; return bytes, seconds and counts."""
    torch.set_num_threads(1)
    base = internals.fresh(LLAMA)
    adapter = base.attach("x", METHODS[method]())
    base.train()
    own = [*base.model.parameters(), *base.model.buffers(), *adapter.parameters()]
    keeper = Keeper(own)
    before = high_water()
    began = time.perf_counter()
    with base.using("x"), internals.Ledger(own) as ledger:
        with keeper.watching():
            loss = internals.loss_of(base, batch_of(base, rows))
        loss.backward()
    seconds = time.perf_counter() - began
    sizes = dict(zip(FACTS, (keeper.size(), ledger.peak, high_water() - before), strict=True))
    return {**sizes, "seconds": seconds, "base": base.count(), "trained": adapter.count()}


class Keeper:
    """Collect the storages that autograd keeps inside `watching`, except those that are known."""

    def __init__(self, known: list[torch.Tensor]) -> None:
        self._known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self._kept: dict[int, int] = {}

    def watching(self) -> torch.autograd.graph.saved_tensors_hooks:
        """Return the context to watch in: a forward, in which what is kept stays and no address is used
        twice."""
        return torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor)

    def size(self) -> int:
        """Return the bytes of all of them."""
        return sum(self._kept.values())

    def _keep(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._known:
            self._kept[storage.data_ptr()] = storage.nbytes()
        return tensor


def batch_of(base: graft.Base, rows: int) -> Any:
    """Return rows of random ids, every token supervised."""
    chance = torch.Generator().manual_seed(0)
    return internals.random_batch(
        base, torch.randint(base.model.config.vocab_size, (rows, LENGTH), generator=chance)
    )


def high_water() -> int:
    """Return the most bytes that this process has had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def compare() -> bool:
    """Print all rows as a table; return whether the ladder is smaller everywhere."""
    smaller = True
    for rows in ROWS:
        measured = {}
        for method in METHODS:
            words = [sys.executable, __file__, method, str(rows)]
            done = subprocess.run(words, check=True, capture_output=True, text=True)
            measured[method] = json.loads(done.stdout)
        for method, facts in measured.items():
            sizes = "".join(f"{name} {facts[name] / 2**20:7.1f} MiB   " for name in FACTS)
            counts = f"{method:<7} {facts['trained']:>9,} trained"
            print(f"{rows} x {LENGTH}  {counts}   {sizes}{facts['seconds']:.1f} s")
        shares = {name: measured["ladder"][name] / measured["lora"][name] for name in FACTS}
        print("         ratio   " + "".join(f"{name} {share:.3f}   " for name, share in shares.items()))
        smaller = smaller and all(share < 1 for share in shares.values())
    print(
        f"base {measured['lora']['base']:,} parameters, {LLAMA['hidden_size']} x {LLAMA['num_hidden_layers']}"
    )
    return smaller


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(step(sys.argv[1], int(sys.argv[2]))))
    else:
        sys.exit(0 if compare() else 1)
