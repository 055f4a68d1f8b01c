"""Damage files as a bad disk does, and use them: every damage must be seen, or provably change nothing.

A case flips one bit, cuts a file at a 64th of its length, deletes a file, swaps two files, or puts the file
of another in its place. Then the door through which users reach the folder is opened. It must refuse with an
error of graft's own, or load exactly what it loaded from the whole folder ("harmless": the cache is built
anew, or the byte says nothing). Anything else is a silent or a nameless failure.
"""

import hashlib
import itertools
import json
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import crash
import recorder
import torch
import victims
from cells import HARMLESS, HELD, Cell, Fault, Outcome, counts

import graft
from graft import storage
from graft.data import prepare
from graft.errors import GraftError
from graft.recipe import read
from graft.runs.chain import run
from graft.runs.quantise import quantise
from graft.stages.stage import stage_of

PARTS = 64
Door = Callable[[Path], object]  # what is loaded from a folder, to be compared


@dataclass
class Victim:
    """folder: whole.  other: a folder of the same files with other contents.  door: see `Door`.  skip: files
    that say nothing to the door."""

    folder: Path
    other: Path
    door: Door
    skip: tuple[str, ...] = ()
    files: list[str] = field(init=False)

    def __post_init__(self) -> None:
        found = [p.relative_to(self.folder) for p in sorted(self.folder.rglob("*")) if p.is_file()]
        self.files = [p.as_posix() for p in found if not p.name.startswith(".") and p.name not in self.skip]


class Flips:
    """The stand of bits: there is no end to them. Half of them in the files by their size, half by number."""

    total: int | None = None

    def __init__(self, folder: Path, victim: Victim) -> None:
        self.folder, self.victim = folder, victim
        self.whole = victim.door(self._fresh())

    def _fresh(self) -> Path:
        return victims.copy(self.victim.folder, self.folder / "state" / self.victim.folder.name)

    def _bit(self, number: int) -> tuple[str, int, int]:
        chance = random.Random(number)
        sizes = [(self.victim.folder / name).stat().st_size for name in self.victim.files]
        weights = sizes if number % 2 else [int(size > 0) for size in sizes]
        at = chance.choices(range(len(sizes)), weights)[0]
        return self.victim.files[at], chance.randrange(sizes[at]), chance.randrange(8)

    def name(self, number: int) -> str:
        name, byte, bit = self._bit(number)
        return f"bit {bit} of byte {byte} of {name}"

    def damage(self, place: Path, number: int) -> None:
        name, byte, bit = self._bit(number)
        data = bytearray((place / name).read_bytes())
        data[byte] ^= 1 << bit
        (place / name).write_bytes(data)

    def case(self, number: int) -> Outcome:
        place = self._fresh()
        self.damage(place, number)
        try:
            found = self.victim.door(place)
        except GraftError:
            return HELD
        except Exception as error:
            raise Fault(f"not an error of graft's: {type(error).__name__}: {error}") from None
        if found == self.whole:
            return HARMLESS
        raise Fault("loaded without a word, and other than it was")

    def close(self) -> None:
        recorder.cleared(self.folder / "state")


class Damages(Flips):
    """The stand of everything but bits: cuts, deletions, swaps, and files of another folder."""

    def __init__(self, folder: Path, victim: Victim) -> None:
        super().__init__(folder, victim)
        names = victim.files
        self.cases: list[tuple[str, ...]] = [
            ("cut", name, str(part)) for name in names for part in range(PARTS) if self._size(name) > part
        ]
        self.cases += [("delete", name) for name in names]
        self.cases += [("swap", *pair) for pair in itertools.combinations(names, 2)]
        own, other = victims.contents(victim.folder), victims.contents(victim.other)
        self.cases += [("take of another", name) for name in names if own[name] != other.get(name, own[name])]
        self.total: int | None = len(self.cases)

    def _size(self, name: str) -> int:
        return (self.victim.folder / name).stat().st_size

    def name(self, number: int) -> str:
        return " ".join(self.cases[number])

    def damage(self, place: Path, number: int) -> None:
        kind, name, *more = self.cases[number]
        path = place / name
        data = path.read_bytes()
        if kind == "cut":
            path.write_bytes(data[: len(data) * int(more[0]) // PARTS])
        elif kind == "delete":
            path.unlink()
        elif kind == "swap":
            path.write_bytes((place / more[0]).read_bytes())
            (place / more[0]).write_bytes(data)
        else:
            path.write_bytes((self.victim.other / name).read_bytes())


# What is loaded


def hashed(tensors: Any) -> str:
    """Return a hash of named tensors."""
    whole = hashlib.sha256()
    for key in sorted(tensors):
        value = tensors[key].detach().cpu().contiguous()
        whole.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        whole.update(value.flatten().view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return whole.hexdigest()


def of_tokenizer(tokenizer: Any) -> str:
    """Return as text all that decides what a tokenizer writes."""
    if tokenizer is None:
        return ""
    facts = [tokenizer.special_tokens_map, tokenizer.chat_template, tokenizer.model_max_length]
    return tokenizer.backend_tokenizer.to_str() + json.dumps(facts, default=str, sort_keys=True)


def model_door(folder: Path) -> object:
    """Load a model, or the GGUF file in its folder. Every tensor and setting counts, and its tokenizer."""
    base = graft.load(str(next(folder.glob("*.gguf"), folder)))
    facts = base.model.config.to_dict() | base.model.generation_config.to_dict()
    facts = {
        key: value for key, value in facts.items() if key not in ("_name_or_path", "transformers_version")
    }
    settings = json.dumps(facts, default=str, sort_keys=True)
    return hashed(base.model.state_dict()), settings, of_tokenizer(base.tokenizer)


def adapter_door(base: Any) -> Door:
    return lambda folder: crash.loaded(base, folder)


def checkpoint_door(folder: Path) -> object:
    """Validate a checkpoint, as every use of one begins."""
    return repr(storage.validate(folder))


def manifest_door(folder: Path) -> object:
    """Find the newest checkpoint as a run does; the damaged one must be told, never be a reason to stop."""
    newest, damaged = storage.latest(folder.parent)
    if newest is None and len(damaged) == 1:
        raise damaged[0][1]
    return repr(storage.validate(newest)) if newest else "none"


# Victims


def runs(folder: Path, kind: str = "sft") -> tuple[Path, Path, Path]:
    """Return the home and the folders of two runs that differ by their seed."""
    home = victims.home(folder / "home")
    for name, seed in (("one", 1), ("two", 2)):
        run(read(victims.settings(home, folder / name, kind, train={"seed": seed})))
    return home, folder / "one", folder / "two"


def checkpoint(folder: Path) -> Victim:
    _, one, two = runs(folder)
    newest = next(iter((one / "checkpoints").glob("step-*")))
    return Victim(newest, two / "checkpoints" / newest.name, manifest_door)


def answers(folder: Path) -> Victim:
    _, one, two = runs(folder, "grpo")
    newest = max((one / "rollouts").glob("[0-9]*"))
    return Victim(newest, two / "rollouts" / newest.name, checkpoint_door)


def adapter_of_run(folder: Path) -> Victim:
    home, one, two = runs(folder)
    return Victim(one / "adapter", two / "adapter", adapter_door(graft.load(str(home / "model"))))


def saved_adapter(folder: Path) -> Victim:
    base = crash.two_adapters(folder)
    for name in ("one", "two"):
        base.adapters[name].save(folder / name)
    return Victim(folder / "one", folder / "two", adapter_door(base))


def exported(to: str) -> Callable[[Path], Victim]:
    def build(folder: Path) -> Victim:
        base = crash.two_adapters(folder)
        for name in ("one", "two"):
            graft.export(base, folder / name, to, adapter=name, lossy=True)
        return Victim(folder / "one", folder / "two", adapter_door(base) if to == "peft" else model_door)

    return build


def quantised(folder: Path) -> Victim:
    base = crash.two_adapters(folder)
    for name in ("one", "two"):
        graft.export(base, folder / f"hf-{name}", "hf", adapter=name, lossy=True)
        quantise(str(folder / f"hf-{name}"), folder / name, "nf4")
    return Victim(folder / "one", folder / "two", model_door)


def cache(folder: Path) -> Victim:
    """The token cache: what is prepared with a damaged entry must be what is prepared without one."""
    home = victims.home(folder / "home")
    base = graft.load(str(home / "model"))
    os.environ["GRAFT_CACHE"] = str(folder / "cache")
    chosen = read(victims.settings(home, folder / "run"))
    stage = stage_of(chosen)

    def prepared() -> object:
        done = prepare(chosen.data, base.tokenizer, stage, family=base.family, vocabulary=base.vocabulary)
        parts = [[list(part.ids) if hasattr(part, "ids") else part for part in rows] for rows in
                 (done.train, done.eval or [])]  # fmt: skip
        return repr(parts), bytes(done.train.learnt), list(done.train.targets), repr(done.report), done.labels

    prepared()
    (entry,) = (folder / "cache" / "data").iterdir()
    whole = victims.copy(entry, folder / "whole" / entry.name)

    def door(place: Path) -> object:
        victims.copy(place, entry)
        return prepared()

    # Another entry's file: that of the same rows in another order, which fits in every size.
    lines = (home / "rows.jsonl").read_text().splitlines(keepends=True)
    (home / "turned.jsonl").write_text("".join(reversed(lines)))
    turned = read(victims.settings(home, folder / "run", data={"train": str(home / "turned.jsonl")}))
    prepare(turned.data, base.tokenizer, stage, family=base.family, vocabulary=base.vocabulary)
    (second,) = (p for p in (folder / "cache" / "data").iterdir() if p.name != entry.name)
    return Victim(whole, victims.copy(second, folder / "other" / entry.name), door)


VICTIMS: dict[str, tuple[Callable[[Path], Victim], SimpleNamespace]] = {
    # flips and damages of the small level; flips of the release
    "checkpoint": (checkpoint, SimpleNamespace(flips=60, damages=60, release=3000)),
    "answers": (answers, SimpleNamespace(flips=0, damages=0, release=1000)),
    "adapter of a run": (adapter_of_run, SimpleNamespace(flips=20, damages=30, release=1500)),
    "saved adapter": (saved_adapter, SimpleNamespace(flips=20, damages=30, release=1000)),
    "export peft": (exported("peft"), SimpleNamespace(flips=0, damages=0, release=500)),
    "export hf": (exported("hf"), SimpleNamespace(flips=10, damages=20, release=1000)),
    "export gguf": (exported("gguf"), SimpleNamespace(flips=0, damages=0, release=500)),
    "quantised model": (quantised, SimpleNamespace(flips=10, damages=20, release=1000)),
    "token cache": (cache, SimpleNamespace(flips=40, damages=40, release=1500)),
}


def stand(kind: type[Flips], build: Callable[[Path], Victim]) -> Callable[[Path], Flips]:
    return lambda folder: kind(folder, build(folder / "material"))


CELLS = [
    *(Cell("flips", what, stand(Flips, build), counts(n.flips, 200, n.release))
      for what, (build, n) in VICTIMS.items()),
    *(Cell("cuts and swaps", what, stand(Damages, build), counts(n.damages, 200, None))
      for what, (build, n) in VICTIMS.items()),
]  # fmt: skip
