"""Answer one batch with several adapters of different kinds: each row names its own.

    python examples/mixed_batch.py

The base runs once over all rows. What a row gets does not depend on its neighbours.
"""

import torch

import graft

CARD = (
    "Write a product description.\n\nname: Silver Otter\ntype: kettle\ncolour: deep green\n\nDescription:\n"
)
METHODS = {
    "lora": graft.LoRA(r=8),
    "bottleneck": graft.Pfeiffer(),
    "prefix": graft.PrefixTuning(num_virtual_tokens=8),
}


def main(steps: int = 15) -> float:
    base = graft.load("seedling", dtype="fp32")
    data = {"train": "seedling:descriptions", "limit": 400, "eval": None}
    for name, method in METHODS.items():
        adapter = base.attach(name, method)
        graft.train(base, adapter, data, max_steps=steps, lr=5e-3, output=f"runs/mixed_batch/{name}")

    rows = [*METHODS, None]
    for name, text in zip(rows, base.generate([CARD] * 4, adapters=rows, max_new_tokens=30), strict=True):
        print(f"{name or 'bare base':10}", repr(text))

    ids = base.tokenizer(CARD, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        together = base(ids.repeat(4, 1), adapters=rows).logits
        alone = torch.cat([base(ids, adapters=[name]).logits for name in rows])
    difference = (together - alone).abs().max().item()
    print(f"largest difference of a logit between one batch and four: {difference:.1e}")
    return difference


if __name__ == "__main__":
    main()
