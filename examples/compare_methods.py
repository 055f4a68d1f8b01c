"""Compare methods, and a mix of two, on the same base and rows.

    python examples/compare_methods.py

Each is trained for the same number of steps. A fair comparison also searches the learning rate, as
benchmarks/methods does.
"""

import graft

METHODS = {
    "lora": (graft.LoRA(r=8), 5e-3),
    "ia3": (graft.IA3(), 2e-2),
    "bitfit": (graft.BitFit(), 2e-2),
    "pfeiffer": (graft.Pfeiffer(), 5e-3),
    "lora + prefix": ([graft.LoRA(r=8), graft.PrefixTuning(num_virtual_tokens=8)], 5e-3),
}


def main(steps: int = 20) -> dict[str, float]:
    base = graft.load("seedling", dtype="fp32")
    data = {
        "train": "seedling:descriptions",
        "limit": 400,
        "eval": None,
        "test": "seedling:descriptions-held-out",
    }
    after = {}
    print(f"{'method':14} {'trained':>8}   perplexity before -> after {steps} steps")
    for name, (method, rate) in METHODS.items():
        adapter = base.attach(name, method)
        keys = {"max_steps": steps, "lr": rate, "evaluate": {"limit": 20}, "output": f"runs/compare/{name}"}
        scores = graft.train(base, adapter, data, **keys).scores
        after[name] = scores["after"]["perplexity"]
        print(f"{name:14} {adapter.count():8,}   {scores['before']['perplexity']:.2f} -> {after[name]:.2f}")
        base.detach(name)
    return after


if __name__ == "__main__":
    main()
