"""Train on a 4-bit base, merge, ship, and check that the shipped model is the one that was trained.

    python examples/merge_and_export.py

Every export has a certificate, which says by how much the folder, read again, differs. The folder is then
loaded in plain transformers.
"""

import json

import torch
from transformers import AutoModelForCausalLM

import graft

CARD = (
    "Write a product description.\n\nname: Silver Otter\ntype: kettle\ncolour: deep green\n\nDescription:\n"
)


def main(steps: int = 20) -> float:
    base = graft.load("seedling", quant="nf4", dtype="fp32")
    base.attach("shop", graft.LoRA(r=8))
    data = {"train": "seedling:descriptions", "limit": 400, "eval": None}
    graft.train(base, base.adapters["shop"], data, max_steps=steps, lr=5e-3, output="runs/merge_and_export")

    folder = graft.export(base, "runs/merge_and_export/model", to="hf", adapter="shop", force=True)
    certificate = json.loads((folder / "certificate.json").read_text())
    print("the certificate has:", ", ".join(certificate))

    ids = base.tokenizer(CARD, return_tensors="pt")["input_ids"]
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with base.using("shop"), torch.no_grad():
        difference = (base(ids).logits - plain(ids).logits).abs().max().item()
    print(f"largest difference of a logit between the adapter and the shipped folder: {difference:.1e}")
    print(base.tokenizer.decode(plain.generate(ids, max_new_tokens=30, do_sample=False)[0, ids.shape[1] :]))
    return difference


if __name__ == "__main__":
    main()
