"""Damage a model folder in one of many ways, by a number: the same number does the same damage."""

import copy
import json
import random
import struct
from pathlib import Path
from typing import Any

STRANGE: tuple[Any, ...] = (
    None, True, -1, 0, 1, 7, 10**3, 10**7, 10**9, 2**31, 2**63, 10**40, 1e308, -1e308, 0.5, float("nan"),
    float("inf"), "", "x", "x" * 100_000, "../../etc/passwd", "\0", "\ud800", [], [1], [[[[]]]], {}, {"a": 1},
    {"a": {"b": []}}, [None], ["x"] * 3,
)  # fmt: skip
TEXTS = (
    "",
    "{",
    "[]",
    "null",
    "5",
    '"x"',
    "[" * 200_000,
    '{"a":' * 100_000,
    "{" + '"a":1,' * 5 + "}",
    "\0",
    "NaN",
)
JSONS = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


def damage(folder: Path, number: int) -> str:
    """Damage a folder; return in words what was done."""
    chance = random.Random(number)
    ways = (_setting, _setting, _setting, _inside, _text, _bytes, _header, _header, _index)
    return chance.choice(ways)(folder, chance)


def _setting(folder: Path, chance: random.Random) -> str:
    """Give a key of config.json, or of another file, a strange value."""
    name = chance.choice(("config.json", *JSONS))
    facts = json.loads((folder / name).read_text())
    more = ["num_labels", "architectures", "quantization_config", "eos_token_id", "rope_parameters", "dtype"]
    key = chance.choice([*facts, *more])
    value = copy.deepcopy(chance.choice(STRANGE))
    if chance.random() < 0.15:
        facts.pop(key, None)
        done = f"{name}: {key} taken out"
    else:
        facts[key] = value
        done = f"{name}: {key} = {value!r:.60}"
    (folder / name).write_text(json.dumps(facts))
    return done


def _inside(folder: Path, chance: random.Random) -> str:
    """Put a strange value anywhere into a JSON file, however deep."""
    name = chance.choice(JSONS)
    facts = json.loads((folder / name).read_text())
    at, path = facts, [name]
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        if not keys:
            break
        key = chance.choice(keys)
        path.append(str(key))
        if isinstance(at[key], dict | list) and at[key] and chance.random() < 0.8:
            at = at[key]
            continue
        at[key] = value = copy.deepcopy(chance.choice(STRANGE))
        path.append(f"{value!r:.60}")
        break
    (folder / name).write_text(json.dumps(facts))
    return " ".join(path)


def _text(folder: Path, chance: random.Random) -> str:
    """Give a JSON file another text."""
    name, text = chance.choice((*JSONS, "model.safetensors.index.json")), chance.choice(TEXTS)
    (folder / name).write_text(text)
    return f"{name} is {text!r:.40}"


def _bytes(folder: Path, chance: random.Random) -> str:
    """Flip, cut or repeat bytes of any file."""
    file = chance.choice(sorted(folder.iterdir()))
    raw = bytearray(file.read_bytes())
    way = chance.choice(("flip", "cut", "repeat"))
    at = chance.randrange(len(raw))
    if way == "flip":
        for _ in range(chance.randint(1, 20)):
            raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
    elif way == "cut":
        del raw[at:]
    else:
        raw[at:at] = raw[at : at + chance.randint(1, 500)]
    file.write_bytes(raw)
    return f"{file.name}: {way} at {at}"


def _header(folder: Path, chance: random.Random) -> str:
    """Change the header of the weights: names, shapes, places, dtypes."""
    file = folder / "model.safetensors"
    raw = file.read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + size])
    key = chance.choice([name for name in header if name != "__metadata__"])
    way = chance.choice(("name", "shape", "offsets", "dtype", "gone", "size", "metadata"))
    if way == "name":
        header[chance.choice(("", "x", "x" * 100_000, "../x", key + ".y", "\ud800"))] = header.pop(key)
    elif way == "shape":
        header[key]["shape"] = chance.choice(([], [0], [10**9, 10**9], [2**63], [-1], "x", [1] * 1000))
    elif way == "offsets":
        header[key]["data_offsets"] = chance.choice(([0, 0], [0, 10**12], [-1, 5], [5, 1], [], "x"))
    elif way == "dtype":
        header[key]["dtype"] = chance.choice(("F8_E4M3", "I64", "BOOL", "F64", "C64", "x", 5, None))
    elif way == "gone":
        del header[key]
    elif way == "metadata":
        header["__metadata__"] = chance.choice(({"format": "tf"}, {"format": "x"}, {}, "x", {"a": 1}))
    body = json.dumps(header).encode()
    length = chance.choice((0, 1, 2**40, 2**63)) if way == "size" else len(body)
    file.write_bytes(struct.pack("<Q", length) + body + raw[8 + size :])
    return f"the header's {way} of {key}"


def _index(folder: Path, chance: random.Random) -> str:
    """Add an index of shards that is strange."""
    maps: tuple[Any, ...] = (
        [1], {"a": 1}, {"a": "../model.safetensors"}, {"a": "/etc/passwd"}, {"a": "x" * 100_000}, "x",
        {"a": "model.safetensors", "b": "no.safetensors"}, {}, None, {"a": "\0"}, {"a": "."},
    )  # fmt: skip
    chosen = chance.choice(maps)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": chosen}))
    if chance.random() < 0.7:
        (folder / "model.safetensors").rename(folder / "other.safetensors")
    return f"an index of {chosen!r:.60}"
