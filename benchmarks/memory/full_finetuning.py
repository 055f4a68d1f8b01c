"""Compare the peak memory of full fine-tuning, by Graft's optimizers and by torch's AdamW, on one bf16 model.

    python benchmarks/memory/full_finetuning.py               every kind, as a table
    python benchmarks/memory/full_finetuning.py --kind adamw  one kind, in this process

A Llama of 162 million random parameters takes three steps of two rows of 128 tokens; each kind is a process
of its own. torch's AdamW keeps its moments in bf16 and no master, as a plain loop over a bf16 model does.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "common"))

LLAMA = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}
KINDS = ("torch", "adamw", "adamw_8bit", "paged_adamw_8bit")
STEPS, RATE = 3, 1e-4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kind", choices=KINDS, help="measure this one in this process")
    kind = parser.parse_args().kind
    if kind is None:
        for each in KINDS:
            subprocess.run([sys.executable, __file__, "--kind", each], check=True)
        return
    loss = train_torch() if kind == "torch" else train_graft(kind)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{kind:<18} peak {peak:,.0f} MiB   loss of the last step {loss:.4f}", flush=True)


def feed() -> Any:
    """Return rows of 128 random tokens, the same for all."""
    import internals
    import torch

    ids = torch.randint(3, LLAMA["vocab_size"], (2 * STEPS, 128), generator=torch.Generator().manual_seed(0))
    return internals.random_feed(ids, 2)


def train_torch() -> float:
    """Train by a plain loop and return the last loss."""
    import internals
    import torch

    model = internals.fresh(dict(LLAMA), dtype="bf16").model.requires_grad_(True).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    batches = feed()
    for step in range(STEPS):
        (batch,) = batches.step(0, step)
        loss = model(**batch.inputs, labels=batch.labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return float(loss.detach())


def train_graft(kind: str) -> float:
    """Train by Graft with one of its optimizers and return the last loss."""
    import internals

    import graft

    base = internals.fresh(dict(LLAMA), dtype="bf16")
    base.attach("all", graft.Full())
    how = {"max_steps": STEPS, "lr": RATE, "warmup": 0.0, "schedule": "constant", "optimizer": kind}
    with tempfile.TemporaryDirectory() as folder:
        return internals.trained_loss(base, "all", feed(), folder, **how)


if __name__ == "__main__":
    main()
