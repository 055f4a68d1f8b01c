"""Hostile rows, adapters, models, templates and tokenizers: each a function of one number.

A value of a JSON file is replaced by one of another kind or size, dropped, doubled or moved; bytes are
flipped, cut, doubled or put elsewhere. `TARGETS` gives, for each kind of input, what tries such a case through
the door that users have.
"""

import copy
import csv
import gzip
import io
import json
import random
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import crash
import recorder
import torch
import victims

import graft
from graft.data import prepare
from graft.data.preparation import load_rows
from graft.recipe import read
from graft.stages.stage import stage_of

BOMB = "(([a-z_]|[a-z0-9_.])*)*!"  # a regular expression that takes for ever on "aaaa...b"
WORDS = ("user", "assistant", "system", "tool", "text", "prompt", "completion", "label", "chosen", "rejected")


def hostile(chance: random.Random) -> Any:
    """Return a value that nobody means."""
    return chance.choice([
        None, True, False, 0, -1, 1, 2**31, 2**63, 2**70, 10**400, 0.5, -0.0, 1e30, 1e308, float("nan"), float("inf"),
        "", " ", "16", "nan", "\0", "\ud800", "x" * 100_000, "é" * 999, "../../../etc/passwd", BOMB, "(", "[a-", ".*",
        [], {}, [[]], [None], [1, "a", {}], {"": None}, {"q_proj": 2_000_000_000}, [0] * 20_000, nested(2000), nested(50),
        {str(i): i for i in range(5000)},
    ])  # fmt: skip


def nested(depth: int) -> list[Any]:
    """Return a list in a list in a list."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every value inside a value of JSON."""
    found = [path] if path else []
    if len(path) < 6 and isinstance(value, dict | list):
        for key, inner in list(value.items() if isinstance(value, dict) else enumerate(value))[:400]:
            found += places(inner, (*path, key))
    return found


def mutated(value: Any, chance: random.Random) -> Any:
    """Return a value of JSON with one to three places changed."""
    if chance.random() < 0.03:
        return hostile(chance)
    value = copy.deepcopy(value)
    for _ in range(chance.randint(1, 3)):
        known = places(value)
        if not known:
            return hostile(chance)
        *above, key = chance.choice(known)
        holder = value
        for part in above:
            holder = holder[part]
        kind = chance.random()
        if kind < 0.55:
            holder[key] = hostile(chance)
        elif kind < 0.65:
            del holder[key]
        elif kind < 0.75:
            holder[key] = [holder[key]] if chance.random() < 0.5 else {"a": holder[key]}
        elif kind < 0.85 and isinstance(holder, dict):
            holder[chance.choice([f"{key}_", f" {key}", str(key).upper(), ""])] = holder[key]
        elif isinstance(holder[key], int | float):
            holder[key] = chance.choice(
                [holder[key] * 1000, -holder[key], str(holder[key]), holder[key] + 0.5]
            )
        else:
            holder[key] = str(holder[key])
    return value


def as_json(value: Any, chance: random.Random) -> bytes:
    """Write a value; sometimes with damaged syntax."""
    data = json.dumps(value, ensure_ascii=chance.random() < 0.5).encode("utf-8", "surrogatepass")
    return damaged(data, chance) if chance.random() < 0.15 else data


def damaged(data: bytes, chance: random.Random) -> bytes:
    """Return bytes with one to four places changed."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(changed) + 1)
        kind = chance.randrange(7)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del changed[at:]
        elif kind == 2:
            del changed[at : at + chance.randrange(1, 40)]
        elif kind == 3:
            changed[at:at] = chance.randbytes(chance.randrange(1, 40))
        elif kind == 4:
            changed[at:at] = changed[max(0, at - chance.randrange(1, 400)) : at]
        elif kind == 5:
            changed[at:at] = chance.choice(
                [b"\0", b"\xff\xfe", b'"', b"\n", b"{", b"[" * 3000, b"\xed\xa0\x80", b"\r"]
            )
        else:
            changed[at : at + 8] = struct.pack("<Q", chance.choice([0, 1, 2**31, 2**63, 2**64 - 1]))
    return bytes(changed)


# Rows

ROWS: list[dict[str, Any]] = [
    {"prompt": "What?", "completion": "This."},
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]},
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
    {"instruction": "Add", "input": "1 2", "output": "3"},
    {"text": "Once upon a time", "label": "story"},
    {"prompt": "Hi", "chosen": "Hello", "rejected": "Go"},
    {"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": None, "tool_calls": [
        {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 2}}}]},
        {"role": "tool", "content": "4"}, {"role": "assistant", "content": "4"}],
     "tools": [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]},
]  # fmt: skip
STAGES = {0: "sft", 1: "sft", 2: "sft", 3: "sft", 4: "classify", 5: "dpo", 6: "sft"}


def rows_target(folder: Path) -> Callable[[int], object]:
    """Read a mutated file of rows; every eighth is also encoded."""
    home = victims.home(folder / "home")
    base = graft.load(str(home / "model"))
    recipes = {}
    for stage in ("sft", "classify", "dpo", "pretrain"):
        data = {"eval": None, "max_length": 64, "bad_rows": "skip"}
        chosen = victims.settings(
            home, folder / "run", data=data, stage=stage, evaluate={"metrics": []}, train={"samples": []}
        )
        recipes[stage] = read(chosen)

    def attempt(number: int) -> None:
        chance = random.Random(f"rows {number}")
        place = recorder.cleared(folder / "state")
        place.mkdir()
        kind = chance.randrange(len(ROWS))
        path = (
            place
            / f"rows.{chance.choice(['jsonl', 'jsonl', 'json', 'csv', 'tsv', 'txt', 'jsonl.gz', 'conll'])}"
        )
        path.write_bytes(row_file(path.name, ROWS[kind], chance))
        chosen = recipes[STAGES[kind] if chance.random() < 0.9 else chance.choice(list(recipes))]
        settings = chosen.data.model_copy(update={"train": str(path)})
        if chance.random() < 0.2:
            settings = settings.model_copy(update={"bad_rows": "strict"})
        stage = stage_of(chosen)
        if number % 8:
            loaded = load_rows(settings, stage.accepts())
            if loaded.read < len(loaded.train) + len(loaded.rejects):
                raise AssertionError("more rows are told than were read")
        else:
            prepare(
                settings, base.tokenizer, stage, family=base.family, vocabulary=base.vocabulary, cache=False
            )

    return attempt


def row_file(name: str, row: dict[str, Any], chance: random.Random) -> bytes:
    """Return a file of eight rows, some of them or its bytes changed."""
    rows = [mutated(row, chance) if chance.random() < 0.4 else row for _ in range(8)]
    if name.endswith(("csv", "tsv")):
        text = io.StringIO()
        writer = csv.writer(text, delimiter="\t" if name.endswith("tsv") else ",")
        writer.writerow(list(row))
        for one in rows:
            writer.writerow([str(value) for value in (one.values() if isinstance(one, dict) else [one])])
        data = text.getvalue().encode("utf-8", "surrogatepass")
    elif name.endswith("json"):
        data = as_json(rows if chance.random() < 0.8 else {"data": rows}, chance)
    elif name.endswith(("txt", "conll")):
        data = "".join(
            f"{chance.choice(WORDS)} {i} O\n{chance.choice(['', chr(10)])}" for i in range(9)
        ).encode()
    else:
        data = b"\n".join(as_json(one, chance) for one in rows)
    if chance.random() < 0.4:
        data = damaged(data, chance)
    if name.endswith("gz"):
        data = gzip.compress(data if chance.random() < 0.97 else b" " * 300_000_000)
        data = damaged(data, chance) if chance.random() < 0.3 else data
    return data


# Adapters, models, tokenizers


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
    "lora": lambda: graft.LoRA(r=2), "dora": lambda: graft.LoRA(r=2, use_dora=True), "ia3": lambda: graft.IA3(),
    "bottleneck": lambda: graft.Bottleneck(), "prefix": lambda: graft.Prefix(), "vera": lambda: graft.VeRA(r=2),
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


def models_target(folder: Path, names: Sequence[str] = ("config.json", "generation_config.json", "model.safetensors",
                  "tokenizer_config.json")) -> Callable[[int], object]:  # fmt: skip
    """Load a mutated model folder; of one that loads, encode and answer a text."""
    home = victims.home(folder / "home")
    names = [name for name in names if (home / "model" / name).exists()]

    def attempt(number: int) -> None:
        chance = random.Random(f"{names} {number}")
        place = victims.copy(home / "model", folder / "state")
        in_files(place, chance, names)
        base = graft.load(str(place))
        if base.tokenizer is not None:
            base.generate([victims.PROMPT], max_new_tokens=2)

    return attempt


TOKENIZER_PARTS: list[dict[str, Any]] = [
    {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}},
    {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(.*.*.*)*x"}, "behavior": "Removed", "invert": True}},
    {"normalizer": {"type": "Sequence", "normalizers": [
        {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 1000}] * 3}},
    {"normalizer": {"type": "Replace", "pattern": {"Regex": "(a|aa)+$"}, "content": "b"}},
    {"normalizer": {"type": "Prepend", "prepend": "a" * 10_000_000}},
    {"added_tokens": [{"id": i, "content": f"<{i}>", "single_word": False, "lstrip": False, "rstrip": False,
                       "normalized": False, "special": True} for i in range(100_000)]},
    {"truncation": {"direction": "Right", "max_length": -1, "strategy": "LongestFirst", "stride": 2**40}},
    {"padding": {"strategy": {"Fixed": 2**40}, "direction": "Left", "pad_to_multiple_of": 2**40, "pad_id": 0,
                 "pad_type_id": 0, "pad_token": "x"}},
    {"post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x", "type_id": 0}}] * 9999,
                        "pair": [], "special_tokens": {"x": {"id": "x", "ids": [1] * 9999, "tokens": ["x"] * 9999}}}},
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
            prepare(
                chosen.data,
                base.tokenizer,
                stage,
                family=base.family,
                vocabulary=base.vocabulary,
                cache=False,
            )

    return attempt


# Templates

SHELL = "{% for m in messages %}{{ m['role'] }}: BODY{{ m['content'] }}{{ eos_token }}{% endfor %}"
BODIES = [
    "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
    "{{ 9 ** (9 ** 9) }}", "{{ 'a' * 10 ** 10 }}", "{{ [0] * 10 ** 10 }}", "{{ range(10 ** 9) | list | length }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{{ messages | tojson(indent=10 ** 9) }}",
    "{{ 'a' | center(10 ** 10) }}", "{{ '%9999999999d' % 1 }}", "{{ '{:>9999999999}'.format(1) }}",
    "{{ range(99999) | map('string') | join('a' * 99999) }}", "{{ 1 // 0 }}", "{{ nothing.here.at_all }}", "{{",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ messages.__init__.__globals__ }}", "{% include 'x' %}",
    "{{ cycler.__init__.__globals__.os.system('touch CANARY') }}", "{{ raise_exception('a' * 10 ** 9) }}",
    "{% set n = namespace(x=[1]) %}{% for i in range(99) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x | tojson }}",
    "{% set n = namespace(x=[1]) %}{% for i in range(99999) %}{% set n.x = [n.x] %}{% endfor %}{{ n.x | tojson }}",
    "{{ lipsum(n=9999) }}", "{{ messages | map(attribute='__class__') | list }}", "{{ messages.append(1) }}", "\0",
    "{% for i in range(10 ** 6) %}{{ i | string | replace('1', 'a' * 9999) }}{% endfor %}",
]  # fmt: skip


def templates_target(folder: Path) -> Callable[[int], object]:
    """Prepare conversations with a hostile chat template; nothing may be run."""
    home = victims.home(folder / "home")
    base = graft.load(str(home / "model"))
    (folder / "rows.jsonl").write_text("".join(json.dumps(ROWS[1]) + "\n" for _ in range(4)))
    path = folder / "template.jinja"
    data = {"train": str(folder / "rows.jsonl"), "eval": None}

    def attempt(number: int) -> None:
        chance = random.Random(f"templates {number}")
        body = BODIES[number % len(BODIES)]
        round_, _ = divmod(number, len(BODIES))
        if round_:  # later rounds: two bodies, or a damaged one
            body += chance.choice(BODIES)
            body = damaged(body.encode(), chance).decode("utf-8", "replace") if round_ % 2 else body
        path.write_text(SHELL.replace("BODY", body), encoding="utf-8", errors="replace")
        chosen = read(
            victims.settings(home, folder / "run", data=data | {"template": str(path)}, train={"samples": []})
        )
        try:
            prepare(
                chosen.data,
                base.tokenizer,
                stage_of(chosen),
                family=base.family,
                vocabulary=base.vocabulary,
                cache=False,
            )
        finally:
            if Path("CANARY").exists():
                raise AssertionError("a template has run a program")

    return attempt


TARGETS: dict[str, Callable[[Path], Callable[[int], object]]] = {
    "rows": rows_target,
    "adapters": adapters_target,
    "models": models_target,
    "templates": templates_target,
    "tokenizers": tokenizers_target,
}
