"""Write a tiny model's folder and a few rows, for tests of whole commands."""

import json
from pathlib import Path

from graft.data.train_tokenizer import train_bpe
from graft.models.fresh import fresh

ANIMALS = ("cat", "dog", "bird", "horse")
TOYS = ("ball", "rope", "kite")
CONFIG = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
}


def rows(count: int = 24) -> list[dict[str, str]]:
    """Return prompts and answers, all different."""
    return [
        {
            "prompt": f"Day {i}. What does the {ANIMALS[i % 4]} want? ",
            "completion": f"The {ANIMALS[i % 4]} wants a {TOYS[i % 3]}.",
        }
        for i in range(count)
    ]


def write_rows(path: Path, given: list[dict[str, str]] | None = None) -> Path:
    """Write these rows, or `rows()`, as JSON Lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in given or rows()), encoding="utf-8")
    return path


def write_model(folder: Path) -> Path:
    """Write a random Llama of about 30,000 parameters with a byte-pair tokenizer."""
    texts = [row["prompt"] + row["completion"] for row in rows()]
    tokenizer = train_bpe(texts, 300, max_length=128)
    base = fresh(CONFIG, tokenizer, seed=3)
    base.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
