"""Peak memory of full fine-tuning: Graft's optimizers and torch's own AdamW on the same bf16 model.

    python benchmarks/memory/full_finetuning.py

A Llama of 162M parameters with random weights, rows of 128 tokens, 3 steps of 2 rows; each line a process of its own.
torch's AdamW keeps its moments in bf16 and no master: that is what a plain loop over a bf16 model does.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "common"))
import internals
import torch

import graft

SHAPE = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}
KINDS = ("torch", "adamw", "adamw_8bit", "paged_adamw_8bit")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--kind", choices=KINDS, help="measure this one here; left out: all, one after another"
    )
    kind = parser.parse_args().kind
    if kind is None:
        for each in KINDS:
            subprocess.run([sys.executable, __file__, "--kind", each], check=True)
        return
    loss = train_torch() if kind == "torch" else train_graft(kind)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{kind:<18} peak {peak:,.0f} MiB   loss of the last step {loss:.4f}", flush=True)


def rows() -> torch.Tensor:
    """Return six rows of 128 token ids, the same for all."""
    return torch.randint(3, 32000, (6, 128), generator=torch.Generator().manual_seed(0))


def train_torch() -> float:
    model = internals.fresh(dict(SHAPE), dtype="bf16").model.requires_grad_(True).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0)
    for ids in rows().split(2):
        loss = model(ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return float(loss.detach())


def train_graft(kind: str) -> float:
    base = internals.fresh(dict(SHAPE), dtype="bf16")
    base.attach("all", graft.Full())
    with tempfile.TemporaryDirectory() as folder:
        return internals.train_steps(base, "all", rows(), kind, folder)


if __name__ == "__main__":
    main()
