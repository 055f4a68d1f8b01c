"""Measure what it costs to try a model on a few tokens, as a share of loading it.

Writes a random Llama of 1.1 billion weights to a temporary folder (2.2 GB) and loads it in fresh processes,
in bf16 and as NF4. `load` tries the forward and what lies behind the head; the first run with packed rows
tries two documents in one row. Best of three, in seconds.

    python benchmarks/probes.py [--layers 22]    # exit 1 if the part at loading takes more than 5 % of it
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
    import graft

    probe, spent = graft.Base.probe, [0.0]

    def timed(base: graft.Base) -> None:
        began = time.perf_counter()
        probe(base)
        spent[0] += time.perf_counter() - began

    graft.Base.probe = timed  # what `load` calls
    began = time.perf_counter()
    base = graft.load(folder, quant)
    loaded = time.perf_counter() - began
    graft.Base.probe = probe
    began = time.perf_counter()
    if base.unpackable(1024) is not None:
        raise AssertionError("a Llama can be packed")
    return {"loading": loaded - spent[0], "head": spent[0], "packing": time.perf_counter() - began}


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
            runs = [subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True) for _ in range(3)]
            rows = [json.loads(run.stdout.splitlines()[-1]) for run in runs]
            best = {name: min(row[name] for row in rows) for name in rows[0]}
            share = best["head"] / best["loading"]
            worst = max(worst, share)
            print(quant, *(f"{name} {value:.3f} s" for name, value in best.items()), f"head {share:.1%}")
    sys.exit(worst > MOST)


if __name__ == "__main__":
    main()
