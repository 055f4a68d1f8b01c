"""Broken adapter folders: a number decides what is broken in a copy of a sound one, the same in every run.

    flipped, cut, grown        bytes of either file
    header                     a value of the safetensors header, whose length is set right again
    config, facts              a value of adapter_config.json, or of what only Graft writes
    tensor                     its numbers, dtype, shape or name; one more, one less, many more

`outcome` loads one and returns "valid" or the name of the GraftError that refused it. Anything else that
happens is for the caller to see.
"""

import json
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from graft.base.base import Base
from graft.core import registry
from graft.errors import GraftError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
BOMB = r"(([a-z_]|[a-z0-9_.])*)*[!?]"
# What is put in the place of a value of JSON.
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 7, 4096, 4097, 10**6, 2 * 10**9, 2**63, 10**30, -(10**30), 0.0, 0.5,
    1e-300, 1e4, 1e30, -1e300, float("nan"), float("inf"), float("-inf"), "", "16", "all", "none", "(", "[",
    BOMB, ".*", "q_proj", "lm_head", "score", "../../x", "\x00", "é" * 50, "a" * 10_000, [], [0], [-1],
    [1, 1], ["q_proj"], ["x"], [None], [[]], [{}], list(range(500)), {}, {"a": 1}, {"q_proj": 2},
    {"q_proj": 2 * 10**9}, {"q_proj": "x"}, {BOMB: 4}, {"(": 4}, {"default": 1e9}, {"name": "lora"},
    {"name": 5}, {"embed_tokens": [1]}, {"embed_tokens": []}, {str(n): n for n in range(300)},
]  # fmt: skip
DTYPES = [torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.int64, torch.bool, torch.uint8,
          torch.complex64, torch.float8_e4m3fn]  # fmt: skip
BLOCK = "base_model.model.model.layers"
NAMES = [
    "", "x", "base_model.model.score.weight", "base_model.model.lm_head.weight", "prompt_embeddings",
    "base_model.model.model.embed_tokens.weight", f"{BLOCK}.0.mlp.experts.9999999.w1.lora_A.weight",
    "a." * 200, f"{BLOCK}.9.self_attn.q_proj.lora_A.weight", f"{BLOCK}.0.self_attn.q_proj.bias",
]  # fmt: skip
# Settings of the methods that are not attached with their defaults.
SETTINGS: dict[str, dict[str, Any]] = {
    "lora": {"r": 4, "rank_pattern": {"v_proj": 2}, "alpha_pattern": {"k_proj": 4}},
    "adalora": {"init_r": 4, "target_r": 2},
    "trainable_tokens": {"token_indices": (3, 5)},
    "vera": {"r": 8},
    "task_head": {"num_labels": 3},
    "prefix": {"num_virtual_tokens": 4},
    "qa_lora": {"r": 4},
}


def write_seeds(folder: Path, base: Base) -> list[Path]:
    """Save one adapter of every method on this base, and two mixes; return their folders."""
    kinds = {name: [name] for name in registry.names() if name != "full"}
    kinds |= {"mix": ["lora", "ia3"], "classifier": ["lora", "task_head"]}
    folders = []
    for kind, names in kinds.items():
        adapter = base.attach(kind, [registry.find(name)(**SETTINGS.get(name, {})) for name in names])
        folders.append(without_digests(adapter.save(folder / kind)))
        base.detach(kind)
    return folders


def without_digests(folder: Path) -> Path:
    """Take the digests, which would see any change, out of an adapter that Graft saved."""
    file = folder / WEIGHTS
    with safe_open(file, "pt") as opened:
        facts = json.loads(opened.metadata()["graft"])
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    del facts["sha256"]
    save_file(tensors, file, metadata={"graft": json.dumps(facts, sort_keys=True)})
    return folder


def mutate(seed: Path, out: Path, number: int) -> str:
    """Write a broken copy of an adapter folder to `out`, and return what is broken.  number: which one."""
    chance = random.Random(f"{seed.name} {number}")
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(seed, out)
    way = chance.choice(WAYS)
    return f"{seed.name} {number}: {way.__name__.strip('_')} {way(out, chance)}"


def outcome(base: Base, folder: Path) -> str:
    """Return "valid", or the name of the error that refused the adapter; it is taken off again."""
    try:
        base.load_adapter(folder, "broken")
    except GraftError as error:
        assert "broken" not in base.adapters, "what was refused stayed on the base"
        return type(error).__name__
    base.detach("broken")
    return "valid"


def _flipped(folder: Path, chance: random.Random) -> str:
    path = folder / chance.choice((CONFIG, WEIGHTS, WEIGHTS))
    data = bytearray(path.read_bytes())
    span = len(data) if chance.random() < 0.5 else min(len(data), 3000)  # more often the header
    for _ in range(chance.choice((1, 1, 1, 8))):
        data[chance.randrange(span)] ^= 1 << chance.randrange(8)
    path.write_bytes(data)
    return path.name


def _cut(folder: Path, chance: random.Random) -> str:
    path = folder / chance.choice((CONFIG, WEIGHTS))
    data = path.read_bytes()
    kept = chance.choice((0, 1, 8, 9, chance.randrange(len(data))))
    path.write_bytes(data[:kept])
    return f"{path.name} after {kept} bytes"


def _grown(folder: Path, chance: random.Random) -> str:
    path = folder / chance.choice((CONFIG, WEIGHTS))
    data = path.read_bytes()
    at, extra = chance.randrange(len(data)), chance.randbytes(chance.choice((1, 100, 5000)))
    path.write_bytes(data[:at] + extra + data[at:])
    return f"{path.name} by {len(extra)} bytes"


def _header(folder: Path, chance: random.Random) -> str:
    path = folder / WEIGHTS
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    said = _broken(header, chance)
    if chance.random() < 0.2:
        text = "[" * 50_000 if chance.random() < 0.5 else json.dumps(header).replace("{", '{"x":1,"x":2,', 1)
    else:
        text = json.dumps(header)
    raw = text.encode()
    size = len(raw) if chance.random() < 0.9 else chance.choice((0, 2**40, 2**63, len(raw) + 1))
    path.write_bytes(struct.pack("<Q", size) + raw + data[8 + length :])
    return said


def _config(folder: Path, chance: random.Random) -> str:
    path = folder / CONFIG
    config = json.loads(path.read_text())
    said = [_broken(config, chance) for _ in range(chance.choice((1, 1, 2, 3)))]
    text = json.dumps(config)
    if chance.random() < 0.05:
        text = chance.choice(
            ("[]", "null", "5", '"x"', "[" * 100_000, '{"a":' * 3000, text + text, f"[{text}]")
        )
        said = [text[:20]]
    path.write_text(text)
    return "; ".join(said)


def _facts(folder: Path, chance: random.Random) -> str:
    path = folder / WEIGHTS
    tensors, facts = _opened(path)
    holder = {"graft": facts}
    said = _broken(holder, chance)
    odd = chance.choice(("{", "[" * 50_000, "[]", "null")) if chance.random() < 0.1 else None
    save_file(tensors, path, metadata={"graft": json.dumps(holder.get("graft")) if odd is None else odd})
    return said if odd is None else odd[:20]


def _tensor(folder: Path, chance: random.Random) -> str:
    path = folder / WEIGHTS
    tensors, facts = _opened(path)
    key = chance.choice(sorted(tensors))
    change = chance.choice(CHANGES)
    tensors |= {name: t.contiguous() for name, t in change(tensors.pop(key), key, chance).items()}
    save_file(tensors, path, metadata={"graft": json.dumps(facts)} if facts else None)
    return f"{change.__name__.strip('_')} {key}"


def _opened(path: Path) -> tuple[dict[str, torch.Tensor], Any]:
    with safe_open(path, "pt") as file:
        facts = json.loads((file.metadata() or {}).get("graft", "{}"))
        return {key: file.get_tensor(key).clone() for key in file.keys()}, facts  # noqa: SIM118


Change = Callable[[torch.Tensor, str, random.Random], dict[str, torch.Tensor]]


def _another_dtype(t: torch.Tensor, key: str, chance: random.Random) -> dict[str, torch.Tensor]:
    return {key: t.to(chance.choice(DTYPES))}


def _not_finite(t: torch.Tensor, key: str, chance: random.Random) -> dict[str, torch.Tensor]:
    value = chance.choice((float("nan"), float("inf"), -float("inf"), 1e300, 3e38))
    return {key: torch.full_like(t.double() if value == 1e300 else t.float(), value)}


def _another_shape(t: torch.Tensor, key: str, chance: random.Random) -> dict[str, torch.Tensor]:
    shapes = [
        t.flatten(),
        t.T if t.ndim == 2 else t[None],
        t[None],
        t[:0],
        t[..., :0],
        t.flatten()[:1].reshape(()),
    ]
    shapes += [t.reshape([1] * 30 + list(t.shape)), t[..., :1], torch.cat([t, t]), t.new_zeros(0)]
    return {key: chance.choice(shapes)}


def _renamed(t: torch.Tensor, key: str, chance: random.Random) -> dict[str, torch.Tensor]:
    parts = key.split(".")
    at = chance.randrange(len(parts))
    others = [
        ".".join([*parts[:at], *parts[at + 1 :]]),
        ".".join([*parts[:at], "x", *parts[at:]]),
        key + "." + key,
    ]
    return {chance.choice((*NAMES, *others)): t}


def _added(t: torch.Tensor, key: str, chance: random.Random) -> dict[str, torch.Tensor]:
    return {
        key: t,
        chance.choice(NAMES): torch.zeros(chance.choice(((), (0,), (2,), (3, 64), (96, 64), (64, 96)))),
    }


def _many(t: torch.Tensor, key: str, chance: random.Random) -> dict[str, torch.Tensor]:
    return {key: t} | {f"base_model.model.x{n}": t.new_zeros(0, 4) for n in range(chance.choice((300, 6000)))}


def _missing(t: torch.Tensor, key: str, chance: random.Random) -> dict[str, torch.Tensor]:
    return {}


CHANGES: list[Change] = [
    _another_dtype, _not_finite, _another_shape, _another_shape, _renamed, _renamed, _added, _many, _missing,
]  # fmt: skip
WAYS = [_flipped, _cut, _grown, _header, _config, _config, _config, _config, _facts, _facts, _tensor, _tensor]


def _broken(tree: Any, chance: random.Random) -> str:
    """Break one value of a tree of JSON in place: another value, another key, or none."""
    places = list(_places(tree))
    if not places:
        return "nothing"
    parent, key = chance.choice(places)
    way = chance.random()
    if way < 0.75:
        parent[key] = _value(chance)
        return f"{key!r:.40} = {str(parent[key])[:40]}"
    if way < 0.85 and isinstance(parent, dict):
        parent[chance.choice((*KEYS, "of_tomorrow"))] = _value(chance)
        return "another key"
    del parent[key]
    return f"without {key!r:.40}"


KEYS = (
    "peft_type", "methods", "modules_to_save", "target_modules", "exclude_modules", "rank_pattern",
    "alpha_pattern", "layers_pattern", "layers_to_transform", "trainable_token_indices",
    "target_parameters", "use_dora", "bias", "init_lora_weights", "use_rslora", "use_qalora",
    "ensure_weight_tying", "task_type", "name", "base", "r", "num_labels", "labels", "adapters", "subspace",
    "qalora_pool",
)  # fmt: skip


def _value(chance: random.Random) -> Any:
    if chance.random() < 0.1:
        return chance.choice([m.files.peft_type for m in map(registry.find, registry.names())])
    if chance.random() < 0.05:
        deep: Any = 1
        for _ in range(400):
            deep = [deep] if chance.random() < 0.5 else {"a": deep}
        return deep
    return json.loads(json.dumps(chance.choice(VALUES)))


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in entries:
        yield tree, key
        yield from _places(value)
