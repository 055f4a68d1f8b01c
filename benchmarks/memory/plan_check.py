"""Compare predicted and measured peak memory of training steps on the CPU; one process per row.

    python benchmarks/memory/plan_check.py            all rows, as a table
    python benchmarks/memory/plan_check.py ROW        one row as JSON (what the table calls)

Measured: the largest resident set of a process that builds a model with random weights, attaches the method
and takes three steps on full packed rows. Predicted: the plan of the same, plus the process as it was before
the model.
"""

import json
import subprocess
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "common"))
import internals
import torch
from memory import forget, peak, resident

import graft

LLAMA = {"model_type": "llama", "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 12,
         "num_attention_heads": 8, "vocab_size": 16384, "max_position_embeddings": 1024}  # fmt: skip
GPT2 = {
    "model_type": "gpt2", "n_embd": 384, "n_layer": 8, "n_head": 6, "vocab_size": 16384, "n_positions": 512
}  # fmt: skip
BERT = {
    "model_type": "bert", "hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6,
    "num_attention_heads": 12,
}  # fmt: skip
LORA = graft.LoRA(r=16, target_modules="all-linear")
ROWS = {  # config, method, quant, dtype, rows, length, checkpointing, optimizer
    "llama lora bf16": (LLAMA, LORA, "none", "bf16", 4, 512, False, "adamw"),
    "llama lora fp32": (LLAMA, LORA, "none", "fp32", 4, 512, False, "adamw"),
    "llama lora bf16 checkpointed": (LLAMA, LORA, "none", "bf16", 4, 512, True, "adamw"),
    "llama qlora": (LLAMA, LORA, "nf4", "bf16", 4, 512, False, "adamw_8bit"),
    "llama full": (LLAMA, graft.Full(), "none", "bf16", 2, 256, False, "adamw"),
    "gpt2 lora fp32": (GPT2, LORA, "none", "fp32", 8, 256, False, "adamw"),
    "bert lora fp32": (BERT, LORA, "none", "fp32", 8, 256, False, "adamw"),
}


def run(name: str) -> dict[str, float]:
    """Predict one row, then measure it; return bytes."""
    config, method, quant, dtype, rows, length, checkpointing, optimizer = ROWS[name]
    shape = internals.Shape(rows, length, rows, checkpointing, optimizer)
    floor = resident()
    base = internals.fresh(config, dtype=dtype)
    if quant != "none":
        internals.quantise_model(base.model, quant)
    adapter = base.attach("x", method)
    for parameter in adapter.parameters():
        parameter.data.add_(0.01)
    batch = internals.packed_batch(base, torch.randint(5, 100, (rows, length)))
    states = internals.optimizer_of(optimizer, adapter, 1e-4)
    base.checkpointing(checkpointing)
    forget()
    for _ in range(3):
        base.train(True)
        with base.using("x"):
            internals.gradient(base, adapter, batch)
        states.step(1.0)
    measured = peak()
    predicted = internals.plan_model(base.model.config, [method], shape, quant=quant, dtype=base.dtype)
    return {
        "predicted": predicted.peaks["train"] - predicted.process + floor,
        "measured": measured,
        "floor": floor,
    }


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(run(sys.argv[1])))
        return
    print(f"{'':32}{'predicted MiB':>15}{'measured MiB':>15}{'ratio':>8}{'without process':>18}")
    for name in ROWS:
        done = subprocess.run([sys.executable, __file__, name], capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        a, b, floor = (found[key] / 2**20 for key in ("predicted", "measured", "floor"))
        print(f"{name:32}{a:15.0f}{b:15.0f}{a / b:8.2f}{(a - floor) / (b - floor):18.2f}", flush=True)


if __name__ == "__main__":
    main()
