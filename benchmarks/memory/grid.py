"""The runs: methods, stages, lengths, checkpointing, number formats and optimizers on bases of four sizes.

Every run takes a few steps on full rows: as many tokens as `data.max_length` says in every row, and in every
answer of a row. So what is measured is what the plan promises: the most that rows of this length can take.
"""

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from results import RAW, Row

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "models"
WORK = RAW.parent / "memory"
TOKENIZER = SHARED / "book-llama-6m"  # of the bases with random weights
ANSWER = 64  # tokens that an online stage writes
WORDS = ("the", "and", "old", "house", "was", "there", "when", "they", "came", "back")
# Random weights by shape. 15m, 160m and 1.1b are those of benchmarks/speed.
SHAPES = {
    "15m": (288, 768, 6, 6, 6),
    "160m": (768, 2048, 12, 12, 12),
    "1.1b": (2048, 5632, 22, 32, 4),
}  # width, inner, layers, heads, heads of keys and values
REAL = {"1m": "babyllama-char", "minilm": "all-MiniLM-L6-v2"}
STAGES: dict[str, Any] = {
    "dpo": {"name": "preference", "objective": "dpo"},
    "ppo": {"name": "ppo", "prompts": 4},
    "grpo": {"name": "grpo", "prompts": 2, "group": 4},
}
ONLINE = ("ppo", "grpo")
METHODS: dict[str, Any] = {
    "lora": {"name": "lora", "r": 16, "target_modules": "all-linear"},
    "dora": {"name": "lora", "r": 16, "target_modules": "all-linear", "use_dora": True},
    "vera": {"name": "vera", "r": 64, "target_modules": "all-linear"},
}


@dataclass(frozen=True)
class Setting:
    """How long a run is.  steps: of the optimizer."""

    steps: int = 3


@dataclass(frozen=True)
class Cell:
    """One run.  rows: of a micro-batch, which is the whole step."""

    base: str
    stage: str = "sft"
    method: str = "lora"
    quant: str = "none"
    dtype: str = "bf16"
    rows: int = 2
    length: int = 512
    checkpointing: bool = False
    optimizer: str = "adamw"
    setting: Setting = Setting()

    @property
    def name(self) -> str:
        """The name of the run, of its raw file and of its log.

        >>> Cell("1m", checkpointing=True, length=128).name
        '1m-sft-lora-none-bf16-2x128-again-adamw'
        """
        again = "-again" if self.checkpointing else ""
        shape = f"{self.rows}x{self.length}{again}"
        return "-".join([self.base, self.stage, self.method, self.quant, self.dtype, shape, self.optimizer])

    def facts(self) -> dict[str, Any]:
        """Return the columns that describe the run."""
        facts = asdict(self)
        del facts["setting"]
        return facts | {"checkpointing": int(self.checkpointing)}

    def model(self) -> Path:
        """Return the folder of the base."""
        return SHARED / REAL[self.base] if self.base in REAL else WORK / "models" / self.base

    def data(self) -> Path:
        """Return the file of the rows."""
        kind = "prompt" if self.stage in ONLINE else self.stage
        return WORK / "data" / f"{self.base}-{kind}-{self.length}.jsonl"

    def recipe(self, output: Path, steps: int) -> dict[str, Any]:
        """Return the recipe of the run."""
        stage = STAGES.get(self.stage, {"name": self.stage})
        if self.stage in ONLINE:
            stage = {**stage, "rewards": f"{WORK / 'data' / 'reward.py'}:length", "max_new_tokens": ANSWER}
        rows = self.rows if self.stage != "grpo" else 1
        return {
            "model": str(self.model()),
            "quant": self.quant,
            "dtype": self.dtype,
            "stage": stage,
            "method": METHODS.get(self.method, {"name": self.method}),
            "data": {"train": str(self.data()), "eval": None, "max_length": self.length},
            "train": {
                "max_steps": steps,
                "batch_size": rows,
                "micro_batch_size": rows,
                "gradient_checkpointing": self.checkpointing,
                "optimizer": self.optimizer,
            },
            "evaluate": {"batch_size": self.rows, "limit": 2},
            "output": str(output),
        }


def cells(known: Mapping[str, Row]) -> Iterator[Cell]:
    """Yield every run, all bases in turn, so that a part of the runs is a sample of all."""
    rounds = zip_longest(_small(), _on("15m"), _on("160m"), _large())
    yield from dict.fromkeys(cell for turn in rounds for cell in turn if cell is not None)


def _small() -> Iterator[Cell]:
    for method in ("lora", "full", "dora", "vera", "houlsby", "prompt"):
        yield Cell("1m", method=method, length=256)
    for stage in ("pretrain", "classify", "reward", "dpo", "ppo", "grpo"):
        yield Cell("1m", stage, length=256)
    yield Cell("1m", length=64)
    yield Cell("1m", length=256, checkpointing=True)
    yield Cell("1m", length=256, quant="nf4")
    yield Cell("1m", length=256, dtype="fp32")
    yield Cell("minilm", "classify", rows=8, length=256)
    yield Cell("minilm", "classify", method="full", dtype="fp32", rows=8, length=256)


def _on(base: str) -> Iterator[Cell]:
    """Yield every kind of run on one base."""
    for method in ("lora", "full", "dora", "vera", "houlsby", "prefix", "prompt", "bitfit", "ladder", "loha"):
        yield Cell(base, method=method)
    for stage in ("pretrain", "classify", "reward", "dpo", "ppo", "grpo"):
        yield Cell(base, stage)
    for length in (128, 2048):
        yield Cell(base, length=length)
        yield Cell(base, length=length, checkpointing=True)
    for method in ("lora", "full", "vera"):
        yield Cell(base, method=method, checkpointing=True)
    for quant in ("nf4", "int4", "int8"):
        yield Cell(base, quant=quant)
    yield Cell(base, quant="nf4", checkpointing=True)
    yield Cell(base, quant="nf4", dtype="fp32")
    yield Cell(base, dtype="fp32")
    yield Cell(base, rows=8, length=256)
    yield Cell(base, method="full", optimizer="adamw_8bit")


def _large() -> Iterator[Cell]:
    yield Cell("1.1b", quant="nf4", rows=1)
    yield Cell("1.1b", quant="nf4", rows=1, checkpointing=True)
    yield Cell("1.1b", rows=1, length=256)


def prepare(cell: Cell) -> None:
    """Write the base and the rows of a run, unless they are there."""
    if cell.base in SHAPES and not (cell.model() / "config.json").exists():
        write_model(cell.model(), *SHAPES[cell.base])
    if not cell.data().exists():
        write_rows(cell)


def write_model(folder: Path, width: int, inner: int, layers: int, heads: int, kv_heads: int) -> None:
    """Write a Llama with random weights in bf16, and a tokenizer."""
    import shutil

    import torch
    from transformers.models.llama.configuration_llama import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaForCausalLM

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    config = LlamaConfig(
        vocab_size=32000, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, max_position_embeddings=4096,
        bos_token_id=1, eos_token_id=2, tie_word_embeddings=width < 1000,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    torch.set_default_dtype(before)
    for file in TOKENIZER.glob("token*.json"):
        shutil.copy(file, folder)


def write_rows(cell: Cell) -> None:
    """Write rows of random words that fill `length` tokens: the whole row, or every answer of it."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(cell.model() / "tokenizer.json"))
    tokenizer.no_truncation()
    chance = random.Random(0)

    def encoded(words: Sequence[str]) -> list[int]:
        ids: list[int] = tokenizer.encode(" ".join(words), add_special_tokens=False).ids
        return ids

    def text(tokens: int) -> str:
        """Return a text of at least so many tokens."""
        words = [chance.choice(WORDS)]
        while len(encoded(words)) < tokens:
            words += [chance.choice(WORDS) for _ in range(tokens)]
        return " ".join(words)

    def cut(tokens: int) -> str:
        """Return a text of so many tokens, or of a few less."""
        words = text(tokens).split()
        few, many = 0, len(words)
        while many - few > 1:
            half = (few + many) // 2
            few, many = (half, many) if len(encoded(words[:half])) <= tokens else (few, half)
        return " ".join(words[:few])

    length = cell.length
    made: dict[str, Any] = {
        "sft": lambda number: {"prompt": "the", "completion": text(length)},
        "pretrain": lambda number: {"text": text(2 * length)},
        "classify": lambda number: {"text": text(length), "label": f"class {number % 4}"},
        "reward": lambda number: {"prompt": "the", "chosen": cut(length - 8), "rejected": cut(length - 8)},
        "dpo": lambda number: {"prompt": "the", "chosen": cut(length - 8), "rejected": cut(length - 8)},
        "prompt": lambda number: {"prompt": cut(length - ANSWER)},
    }
    row = made["prompt" if cell.stage in ONLINE else cell.stage]
    cell.data().parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row(number)) for number in range(24)]
    cell.data().write_text("\n".join(lines) + "\n", encoding="utf-8")
    reward = "def length(completions, **columns):\n    return [float(len(text)) for text in completions]\n"
    (cell.data().parent / "reward.py").write_text(reward, encoding="utf-8")
