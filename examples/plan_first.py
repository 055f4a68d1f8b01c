"""Ask what a run needs in memory before you start it: no weights are read.

    python examples/plan_first.py

The model is a folder with nothing but the configuration of a 1B Llama. The step is traced on tensors without
content.
"""

from transformers import LlamaConfig

import graft

SHAPE = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32}
WAYS = {
    "full": ["method.name=full"],
    "lora": ["method.name=lora"],
    "qlora": ["method.name=lora", "quant=nf4"],
    "qlora, checkpointing": ["method.name=lora", "quant=nf4", "train.gradient_checkpointing=true"],
}


def main(shape: dict[str, int] = SHAPE) -> dict[str, int]:
    config = LlamaConfig(**shape, num_key_value_heads=8, vocab_size=128256, tie_word_embeddings=True)
    config.save_pretrained("runs/plan_first")
    recipe = {"model": "runs/plan_first", "data": {"train": "seedling:descriptions", "max_length": 512}}
    peaks = {}
    for name, changes in WAYS.items():
        plan = graft.plan(recipe, changes)
        peaks[name] = plan.peaks["train"]
        print(f"{name:21} {plan.trained:13,} trained   peak {peaks[name] / 2**30:5.1f} GiB")
    print(f"\n{plan}")
    return peaks


if __name__ == "__main__":
    main()
