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
from types import SimpleNamespace

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


def feed():
    """Return rows of 128 tokens, the same for all."""
    import torch

    from graft.data.batches import TokenBatches
    from graft.data.encode import Example
    from graft.data.feed import Feed

    rows = torch.randint(3, 32000, (6, 128), generator=torch.Generator().manual_seed(0)).tolist()
    tokenizer = SimpleNamespace(pad_token_id=0, eos_token_id=2)
    examples = [Example(ids, ids, f"rows:{n}") for n, ids in enumerate(rows)]
    return Feed(examples, TokenBatches(tokenizer, 128, causal=True), batch_size=2, micro_batch_size=2)


def train_torch() -> float:
    import torch

    from graft.models.fresh import fresh

    model = fresh(dict(SHAPE), dtype="bf16").model.requires_grad_(True).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0)
    rows = feed()
    for step in range(3):
        (batch,) = rows.step(0, step)
        loss = model(**batch.inputs, labels=batch.labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return float(loss.detach())


def train_graft(kind: str) -> float:
    from graft.methods.full import Full
    from graft.models.fresh import fresh
    from graft.objectives.lm import language_modelling
    from graft.recipe import Train
    from graft.training import Task, Trainer

    base = fresh(dict(SHAPE), dtype="bf16")
    base.attach("all", Full())
    settings = Train(max_steps=3, lr=1e-4, warmup=0.0, schedule="constant", optimizer=kind)
    with tempfile.TemporaryDirectory() as folder:
        return Trainer(base, "all", Task(feed(), language_modelling), settings, folder).run().loss


if __name__ == "__main__":
    main()
