"""Compare the peak anonymous memory of loading a model quantised with its bound.

    bound = packed bytes + 3 × the largest tensor in fp32 + 64 MiB

Writes a random Llama of a few hundred MiB to a temporary folder, loads it in a fresh process with `quant=`,
and samples RssAnon while it loads, less what the interpreter and its libraries held before. Mapped files do
not count: the kernel can drop their pages at any time.

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

sys.path.append(str(Path(__file__).parents[1] / "common"))

MIB = 1 << 20


def anonymous() -> int:
    """Return the bytes of this process that no file backs."""
    line = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")
    )
    return int(line.split()[1]) * 1024


def write_model(folder: str, hidden: int, layers: int) -> None:
    """Write a random Llama in bf16."""
    import torch
    from transformers.models.llama.configuration_llama import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaForCausalLM

    torch.set_default_dtype(torch.bfloat16)
    shape = {"hidden_size": hidden, "intermediate_size": 4 * hidden, "num_hidden_layers": layers}
    LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=16, vocab_size=16 * hidden)).save_pretrained(
        folder
    )


def measure(folder: str, quant: str) -> dict[str, float]:
    """Load the model in this process; return MiB."""
    import internals

    import graft

    load, packed_layer = graft.load, internals.QuantLinear  # imported before memory is measured
    before = anonymous()
    samples = [0]
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            samples.append(anonymous())
            time.sleep(0.001)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    start = time.perf_counter()
    model = load(folder, quant, device="cpu").model
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    layers = [module for module in model.modules() if isinstance(module, packed_layer)]
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
    """Write and measure in processes of their own, so that what one leaves is not in the other's peak."""
    with tempfile.TemporaryDirectory() as folder:
        size = ["--hidden", str(hidden), "--layers", str(layers), "--quant", quant]
        words = [sys.executable, __file__, *size]
        subprocess.run([*words, "--write", folder], check=True, stderr=subprocess.DEVNULL)
        done = subprocess.run([*words, "--measure", folder], check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quant", default="nf4")
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--write", help=argparse.SUPPRESS)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        write_model(options.write, options.hidden, options.layers)
    elif options.measure:
        print(json.dumps(measure(options.measure, options.quant)))
    else:
        measured = run(options.quant, options.hidden, options.layers)
        for name, value in measured.items():
            print(f"{name:14}{value:10.1f} {'s' if name == 'seconds' else 'MiB'}")
        print("within the bound" if measured["peak"] <= measured["bound"] else "OVER THE BOUND")
        sys.exit(measured["peak"] > measured["bound"])


if __name__ == "__main__":
    main()
