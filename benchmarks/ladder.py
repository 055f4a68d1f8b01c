"""What a training step of ladder-side tuning holds beside LoRA's, on a Llama of 40 M random parameters in fp32.

    python benchmarks/ladder.py         about half a minute on one thread; exit 1 where the ladder is not smaller

kept: what autograd keeps of the forward, without parameters.  peak: the most that the tensors of forward and backward
take at once.  resident: growth of the process's high-water mark.  A process of its own for every row.
"""

import json
import resource
import subprocess
import sys
import time

import torch

from graft.base.base import Base
from graft.core.registry import find
from graft.data.feed import Batch
from graft.models.fresh import fresh
from graft.objectives.lm import language_modelling
from graft.planning.sketch import Ledger

LLAMA = {"model_type": "llama", "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 10,
         "num_attention_heads": 8, "vocab_size": 8192, "tie_word_embeddings": False}  # fmt: skip
METHODS, ROWS, LENGTH = ("lora", "ladder"), (2, 8), 128
FACTS = ("kept", "peak", "resident")


def step(method: str, rows: int) -> dict[str, float]:
    """One forward and backward at the method's defaults; bytes, seconds and counts."""
    torch.set_num_threads(1)
    base = fresh(LLAMA)
    adapter = base.attach("x", find(method)())
    base.train()
    own = [*base.model.parameters(), *base.model.buffers(), *adapter.parameters()]
    keeper, before, began = Keeper(own), high_water(), time.perf_counter()
    with base.using("x"), Ledger(own) as ledger:
        with keeper.watching():
            loss, _ = language_modelling(base, batch_of(base, rows))
        loss.backward()
    seconds = time.perf_counter() - began
    sizes = dict(zip(FACTS, (keeper.size(), ledger.peak, high_water() - before), strict=True))
    return {**sizes, "seconds": seconds, "base": base.count(), "trained": adapter.count()}


class Keeper:
    """Storages that autograd keeps inside `watching`, but for `known` ones."""

    def __init__(self, known: list[torch.Tensor]) -> None:
        self._known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self._found: dict[int, int] = {}

    def watching(self) -> torch.autograd.graph.saved_tensors_hooks:
        """The block to watch: a forward, so that what is kept stays and no address is used twice."""
        return torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor)

    def size(self) -> int:
        """Bytes of them all."""
        return sum(self._found.values())

    def _keep(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._known:
            self._found[storage.data_ptr()] = storage.nbytes()
        return tensor


def batch_of(base: Base, rows: int) -> Batch:
    """Rows of random ids, every token supervised."""
    ids = torch.randint(
        base.model.config.vocab_size, (rows, LENGTH), generator=torch.Generator().manual_seed(0)
    )
    return Batch(
        {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, ids, rows * (LENGTH - 1), ["random"]
    )


def high_water() -> int:
    """The most bytes that this process has had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def compare() -> bool:
    """All rows as a table; whether the ladder is smaller everywhere."""
    smaller = True
    for rows in ROWS:
        found = {}
        for method in METHODS:
            command = [sys.executable, __file__, method, str(rows)]
            found[method] = json.loads(
                subprocess.run(command, check=True, capture_output=True, text=True).stdout
            )
        for method, facts in found.items():
            sizes = "".join(f"{name} {facts[name] / 2**20:7.1f} MiB   " for name in FACTS)
            print(
                f"{rows} x {LENGTH}  {method:<7} {facts['trained']:>9,} trained   {sizes}{facts['seconds']:.1f} s"
            )
        shares = {name: found["ladder"][name] / found["lora"][name] for name in FACTS}
        print("         ratio   " + "".join(f"{name} {share:.3f}   " for name, share in shares.items()))
        smaller = smaller and all(share < 1 for share in shares.values())
    print(f"base {found['lora']['base']:,} parameters, {LLAMA['hidden_size']} x {LLAMA['num_hidden_layers']}")
    return smaller


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(step(sys.argv[1], int(sys.argv[2]))))
    else:
        sys.exit(0 if compare() else 1)
