"""Peak anonymous memory of loading a model quantised, against its bound.

    bound = packed bytes + 3 × the largest tensor in fp32 + 64 MiB

Writes a random Llama of a few hundred MiB to a temporary folder, loads it in a fresh process with `quant=`, and samples
RssAnon while it loads; what the interpreter and its libraries hold before is taken off. Mapped files do not count: the
kernel can drop their pages at any time.

    python benchmarks/memory/quantise_peak.py [--quant nf4] [--hidden 1024] [--layers 8]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

MIB = 1 << 20


def anonymous() -> int:
    """Bytes of this process that no file backs."""
    line = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")
    )
    return int(line.split()[1]) * 1024


def write_model(folder: str, hidden: int, layers: int) -> None:
    import torch
    from transformers.models.llama.configuration_llama import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaForCausalLM

    torch.set_default_dtype(torch.bfloat16)
    shape = {"hidden_size": hidden, "intermediate_size": 4 * hidden, "num_hidden_layers": layers}
    LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=16, vocab_size=16 * hidden)).save_pretrained(
        folder
    )


def measure(folder: str, quant: str) -> dict[str, float]:
    """Load in this process and return MiB."""
    from graft.models.load import load
    from graft.quant import QuantLinear

    before, samples, done = anonymous(), [0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            samples.append(anonymous())
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    model = load(folder, quant, device="cpu").model
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    layers = [module for module in model.modules() if isinstance(module, QuantLinear)]
    packed = sum(tensor.nbytes for layer in layers for tensor in layer.packed().values())
    largest = 4 * max(
        [m.in_features * m.out_features for m in layers] + [p.numel() for p in model.parameters()]
    )
    return {
        "file": sum(f.stat().st_size for f in Path(folder).glob("*.safetensors")) / MIB,
        "packed": packed / MIB,
        "largest_fp32": largest / MIB,
        "peak": (max(samples) - before) / MIB,
        "bound": (packed + 3 * largest) / MIB + 64,
        "after": (anonymous() - before) / MIB,
        "seconds": seconds,
    }


def run(quant: str, hidden: int, layers: int) -> dict[str, float]:
    """Each step in a process of its own, so that one's leftovers are not the other's peak."""
    with tempfile.TemporaryDirectory() as folder:
        size = ["--hidden", str(hidden), "--layers", str(layers), "--quant", quant]
        subprocess.run(
            [sys.executable, __file__, *size, "--write", folder], check=True, stderr=subprocess.DEVNULL
        )
        found = subprocess.run(
            [sys.executable, __file__, *size, "--measure", folder], check=True, capture_output=True, text=True
        )
    return json.loads(found.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quant", default="nf4")
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--write", help=argparse.SUPPRESS)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.write:
        write_model(given.write, given.hidden, given.layers)
    elif given.measure:
        print(json.dumps(measure(given.measure, given.quant)))
    else:
        found = run(given.quant, given.hidden, given.layers)
        for name, value in found.items():
            print(f"{name:14}{value:10.1f} {'s' if name == 'seconds' else 'MiB'}")
        print("within the bound" if found["peak"] <= found["bound"] else "OVER THE BOUND")
        sys.exit(found["peak"] > found["bound"])


if __name__ == "__main__":
    main()
