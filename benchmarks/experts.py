"""Measure one training step of LoRA on the experts of a mixture: Graft, plain and as NF4, beside PEFT.

Writes a random mixture of 155 million weights, 64 experts in each of 4 blocks, to a temporary folder and
trains it in fresh processes: rank 8 on all experts, 2 rows of 128 tokens, fp32, one thread. Says what the
first step adds to the memory of the process at its peak, and the seconds of the second one.

    python benchmarks/experts.py
"""

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SHAPE = {
    "hidden_size": 512,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "num_hidden_layers": 4,
    "vocab_size": 1000,
    "intermediate_size": 512,
    "moe_intermediate_size": 384,
    "num_experts": 64,
    "num_experts_per_tok": 4,
}
EXPERTS = ("experts.gate_up_proj", "experts.down_proj")
WAYS = ("graft", "graft nf4", "peft")


def write_model(folder: str) -> None:
    """Write the random mixture in fp32."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3_moe", **SHAPE)).save_pretrained(folder)


def trained(folder: str, way: str, ids: Any) -> Callable[[], None]:
    """Return what runs one forward and backward."""
    if way == "peft":
        import peft
        import torch
        from transformers import AutoModelForCausalLM

        plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        config = peft.LoraConfig(r=8, target_modules=[], target_parameters=list(EXPERTS))
        model = peft.get_peft_model(plain, config)
        return lambda: model(ids, labels=ids, use_cache=False).loss.backward()
    import graft

    base = graft.load(folder, "nf4" if way.endswith("nf4") else None, dtype="fp32")
    base.attach("x", graft.LoRA(r=8, target_modules=(), target_parameters=EXPERTS))
    base.train()

    def step() -> None:
        with base.using("x"):
            base(ids, labels=ids, use_cache=False).loss.backward()

    return step


def held() -> float:
    """Return the MiB that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


def measure(folder: str, way: str) -> dict[str, float]:
    """Return the MiB that the first step adds at its peak, and the seconds of the second."""
    import torch

    torch.set_num_threads(1)
    step = trained(folder, way, torch.randint(0, 1000, (2, 128)))
    before, peak, done = held(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], held())

    watcher = threading.Thread(target=watch)
    watcher.start()
    step()
    done.set()
    watcher.join()
    began = time.process_time()
    step()
    return {"added": peak[0] - before, "seconds": time.process_time() - began}


def main() -> None:
    if len(sys.argv) == 3:
        print(json.dumps(measure(*sys.argv[1:])))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_model(folder)
        for way in WAYS:
            words = [sys.executable, __file__, folder, way]
            done = subprocess.run(words, check=True, capture_output=True, text=True)
            one = json.loads(done.stdout.splitlines()[-1])
            print(f"{way:10} a step adds {one['added']:4.0f} MiB and takes {one['seconds']:.2f} s")


if __name__ == "__main__":
    main()
