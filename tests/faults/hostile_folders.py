"""Hostile adapters, models and tokenizers: folders with changed files, tried through the doors that load."""

import json
import random
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import crash
import torch
import victims
from hostile_rows import encoded
from mutations import as_json, damaged, mutated

import graft
from graft.recipe import read
from graft.stages.stage import stage_of


def in_files(place: Path, chance: random.Random, names: Sequence[str]) -> None:
    """Change one or two of these files of a folder."""
    for name in chance.sample(names, chance.randint(1, min(2, len(names)))):
        path = place / name
        data = path.read_bytes()
        if name.endswith(".json") and chance.random() < 0.85:
            data = as_json(mutated(json.loads(data), chance), chance)
        elif name.endswith(".safetensors"):
            data = header_changed(data, chance) if chance.random() < 0.7 else damaged(data, chance)
        else:
            data = damaged(data, chance)
        path.write_bytes(data)


def header_changed(data: bytes, chance: random.Random) -> bytes:
    """Return a safetensors file with another header."""
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    metadata = header.get("__metadata__", {})
    if "graft" in metadata and chance.random() < 0.4:
        metadata["graft"] = as_json(mutated(json.loads(metadata["graft"]), chance), chance).decode(
            "utf-8", "replace"
        )
    else:
        header = mutated(header, chance)
    written = as_json(header, chance)
    length = len(written) if chance.random() < 0.95 else chance.choice([0, 2**20, 2**63])
    return struct.pack("<Q", length) + written + data[8 + size :]


METHODS: dict[str, Callable[[], Any]] = {
    "lora": lambda: graft.LoRA(r=2), "dora": lambda: graft.LoRA(r=2, use_dora=True),
    "ia3": lambda: graft.IA3(), "bottleneck": lambda: graft.Bottleneck(), "vera": lambda: graft.VeRA(r=2),
    "prefix": lambda: graft.Prefix(),
    "prompt": lambda: graft.Prompt(), "bitfit": lambda: graft.BitFit(), "oft": lambda: graft.OFT(),
    "compacter": lambda: graft.Compacter(),
}  # fmt: skip


def adapters_target(folder: Path) -> Callable[[int], object]:
    """Load a mutated adapter on the tiny base, and ask it once."""
    base = crash.two_adapters(folder)
    kept = []
    for name, method in METHODS.items():
        try:
            base.attach(name, method()).save(folder / "kept" / name)
        except Exception:  # a method that does not fit this base
            continue
        finally:
            if name in base.adapters:
                base.detach(name)
        kept.append(name)
    ids = torch.tensor([[1, 5, 9, 4]])

    def attempt(number: int) -> None:
        chance = random.Random(f"adapters {number}")
        place = victims.copy(folder / "kept" / chance.choice(kept), folder / "state")
        in_files(place, chance, ["adapter_config.json", "adapter_model.safetensors"])
        try:
            base.load_adapter(str(place), "tried")
            with torch.no_grad():
                base(ids, adapters=["tried"])
        finally:
            if "tried" in base.adapters:
                base.detach("tried")

    return attempt


MODEL_FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer_config.json")


def models_target(folder: Path) -> Callable[[int], object]:
    """Load a mutated model folder; of one that loads, encode and answer a text."""
    home = victims.home(folder / "home")
    names = [name for name in MODEL_FILES if (home / "model" / name).exists()]

    def attempt(number: int) -> None:
        chance = random.Random(f"models {number}")
        place = victims.copy(home / "model", folder / "state")
        in_files(place, chance, names)
        base = graft.load(str(place))
        if base.tokenizer is not None:
            base.generate([victims.PROMPT], max_new_tokens=2)

    return attempt


TOKENIZER_PARTS: list[dict[str, Any]] = [
    {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated",
                       "invert": False}},
    {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(.*.*.*)*x"}, "behavior": "Removed",
                       "invert": True}},
    {"normalizer": {"type": "Sequence", "normalizers": [
        {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 1000}] * 3}},
    {"normalizer": {"type": "Replace", "pattern": {"Regex": "(a|aa)+$"}, "content": "b"}},
    {"normalizer": {"type": "Prepend", "prepend": "a" * 10_000_000}},
    {"added_tokens": [{"id": i, "content": f"<{i}>", "single_word": False, "lstrip": False, "rstrip": False,
                       "normalized": False, "special": True} for i in range(100_000)]},
    {"truncation": {"direction": "Right", "max_length": -1, "strategy": "LongestFirst", "stride": 2**40}},
    {"padding": {"strategy": {"Fixed": 2**40}, "direction": "Left", "pad_to_multiple_of": 2**40, "pad_id": 0,
                 "pad_type_id": 0, "pad_token": "x"}},
    {"post_processor": {
        "type": "TemplateProcessing", "pair": [],
        "single": [{"SpecialToken": {"id": "x", "type_id": 0}}] * 9999,
        "special_tokens": {"x": {"id": "x", "ids": [1] * 9999, "tokens": ["x"] * 9999}}}},
]  # fmt: skip


def tokenizers_target(folder: Path) -> Callable[[int], object]:
    """Load the tiny model with a hostile or mutated tokenizer, and prepare rows that provoke it."""
    home = victims.home(folder / "home")
    rows = [{"prompt": "a" * 30 + "!", "completion": "a" * 28 + "b"}] * 4
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"train": str(folder / "rows.jsonl"), "eval": None}
    chosen = read(victims.settings(home, folder / "run", data=data, train={"samples": []}))
    stage = stage_of(chosen)

    def attempt(number: int) -> None:
        chance = random.Random(f"tokenizers {number}")
        place = victims.copy(home / "model", folder / "state")
        whole = json.loads((place / "tokenizer.json").read_bytes())
        if number < 4 * len(TOKENIZER_PARTS):
            whole |= TOKENIZER_PARTS[number % len(TOKENIZER_PARTS)]
            whole = mutated(whole, chance) if number >= len(TOKENIZER_PARTS) else whole
            (place / "tokenizer.json").write_text(json.dumps(whole))
        else:
            in_files(place, chance, ["tokenizer.json", "tokenizer_config.json"])
        base = graft.load(str(place))
        if base.tokenizer is not None:
            encoded(chosen.data, base, stage)

    return attempt
