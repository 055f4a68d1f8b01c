"""Measure what the probes of a loaded model cost, as a share of loading it.

Writes a random Llama of 1.1 billion weights to a temporary folder (2.2 GB), loads it in a fresh process, in
bf16 and as NF4, and times what `load` itself does on a few tokens (the forward and the head) and what the
first packed run does (two documents in one row).

    python benchmarks/probes.py [--layers 22]    # exit 1 if they take more than 5 % of loading
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time

SHAPE = {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
}
MOST = 0.05  # of the time of loading


def write_model(folder: str, layers: int) -> None:
    """Write a random Llama in bf16."""
    import torch
    from transformers.models.llama.configuration_llama import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaForCausalLM

    torch.set_default_dtype(torch.bfloat16)
    LlamaForCausalLM(LlamaConfig(num_hidden_layers=layers, **SHAPE)).save_pretrained(folder)


def measure(folder: str, quant: str) -> dict[str, float]:
    """Return the seconds of loading, and those of each probe."""
    from graft.base.base import Base
    from graft.models.load import load

    probe = Base.probe
    spent = []

    def timed(base: Base) -> None:
        began = time.perf_counter()
        probe(base)
        spent.append(time.perf_counter() - began)

    Base.probe = timed
    began = time.perf_counter()
    base = load(folder, quant)
    loaded = time.perf_counter() - began
    began = time.perf_counter()
    assert base.unpackable(1024) is None
    packing = time.perf_counter() - began
    return {"loading": loaded - spent[0], "head": spent[0], "packing": packing}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(*options.measure)))
        return
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        write_model(folder, options.layers)
        for quant in ("none", "nf4"):
            words = [sys.executable, __file__, "--measure", folder, quant]
            done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
            seconds = json.loads(done.stdout.splitlines()[-1])
            share = (seconds["head"] + seconds["packing"]) / seconds["loading"]
            worst = max(worst, share)
            print(quant, *(f"{name} {value:.3f} s" for name, value in seconds.items()), f"probes {share:.1%}")
    sys.exit(worst > MOST)


if __name__ == "__main__":
    main()
