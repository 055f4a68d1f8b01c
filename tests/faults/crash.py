"""Die after every operation on the disk, in every world of the recorder, and look at what is found again.

A victim does something whose operations are recorded. A case is one operation and one world. Most states are
judged by looking at them (`Judge`), those of runs also by running the same command again to its end.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import children
import recorder
import torch
import victims
from cells import HELD, Cell, Fault, Outcome, counts
from recorder import WORLDS, Operation
from safetensors.torch import load_file

import graft
from graft import storage
from graft.errors import GraftError
from graft.recipe import read
from graft.runs.chain import run

# Told of a state: its folder, and how many operations were done.  Raises Fault.
Judge = Callable[[Path, int], None]
Write = Callable[[Any, str, Path], object]  # of the adapter of this name, to a path


@dataclass
class Scene:
    """What was recorded.  begin: operations that had been on the disk for long; crashes come after these."""

    operations: list[Operation]
    judge: Judge
    begin: int = 0


class Crashes:
    """The stand of one scene: every operation in every world, each different state judged once."""

    def __init__(self, folder: Path, scene: Scene) -> None:
        self.folder, self.scene = folder, scene
        self.total: int | None = (len(scene.operations) - scene.begin + 1) * len(WORLDS)
        self._known: dict[str, str] = {}

    def _state(self, number: int) -> tuple[int, str]:
        return self.scene.begin + number // len(WORLDS), WORLDS[number % len(WORLDS)]

    def name(self, number: int) -> str:
        count, world = self._state(number)
        last = " ".join(map(str, self.scene.operations[count - 1][:2])) if count else "nothing"
        return f"after operation {count}, {last}; {world}"

    def case(self, number: int) -> Outcome:
        count, world = self._state(number)
        node = recorder.after(self.scene.operations, self.scene.begin, count)
        place = recorder.cleared(self.folder / "state" / "victim")
        recorder.materialise(node, world, place)
        # What must be there depends on what was promised before, so equal states are judged once for each.
        key = f"{digest(place)} {self._promised(count)}"
        if key not in self._known:
            try:
                self.scene.judge(place, count)
                self._known[key] = ""
            except Fault as fault:
                self._known[key] = str(fault)
        if self._known[key]:
            raise Fault(self._known[key])
        return HELD

    def _promised(self, count: int) -> str:
        return str(promised(self.scene.operations[:count]))

    def close(self) -> None:
        recorder.cleared(self.folder / "state")


def digest(folder: Path) -> str:
    """Return a hash of the names and bytes of a folder."""
    whole = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        data = path.read_bytes() if path.is_file() else b""
        whole.update(f"{path.relative_to(folder)} {len(data)} ".encode() + data)
    return whole.hexdigest()


def promised(operations: list[Operation]) -> int:
    """Return the newest step whose commit had ended: it was renamed, and then its folder was synced."""
    step, renamed = 0, 0
    for kind, path, more in operations:
        if kind == "rename" and Path(str(more)).name.startswith("step-"):
            renamed = int(Path(str(more)).name[5:])
        if kind == "sync" and renamed and path in (".", "checkpoints"):
            step = renamed
    return step


# A commit alone


def save(folder: Path, step: int) -> None:
    """Make a checkpoint as a run makes it: two files, verified, then rotation that keeps one."""

    def fill(temporary: Path) -> None:
        storage.write_tensors(temporary / "adapter.safetensors", {"W": torch.full((40,), float(step))})
        storage.write(temporary / "state.json", storage.encode({"step": step}))

    storage.commit(folder / f"step-{step:06d}", fill, {"step": step})
    storage.validate(folder / f"step-{step:06d}")
    storage.rotate(folder, 1)


def commit_scene(folder: Path, steps: int) -> Scene:
    """Record so many saves; crashes come in the last one."""
    begin = 0
    with recorder.recording(folder / "recorded") as seen:
        for step in range(1, steps + 1):
            begin = len(seen.operations)
            save(folder / "recorded", step)

    def judge(place: Path, count: int) -> None:
        storage.sweep(place)
        newest, damaged = storage.latest(place)
        if damaged:
            raise Fault(f"damaged: {damaged[0][1]}")
        found = 0 if newest is None else int(newest.name[5:])
        if found not in (steps - 1, steps) or found < promised(seen.operations[:count]):
            raise Fault(f"step {found} is found, not {steps - 1} or {steps}")
        if newest is not None:
            tensors, state = (
                load_file(newest / "adapter.safetensors"),
                storage.read_json(newest / "state.json"),
            )
            if state["step"] != found or not bool((tensors["W"] == found).all()):
                raise Fault(f"step {found} holds a mixture")
        if left := victims.litter(place):
            raise Fault(f"{left[0]} is left after the sweep")

    return Scene(seen.operations, judge, begin)


# Whole runs


def record_run(folder: Path, kind: str) -> tuple[Path, recorder.Recorder]:
    """Record a whole run in this process; return the home of its model and the record."""
    place = victims.home(folder / "home")
    with recorder.recording(folder / "calm" / "victim") as seen:
        run(read(victims.settings(place, folder / "calm" / "victim", kind)))
    return place, seen


def looked_at(folder: Path, kind: str) -> Scene:
    """Record a run; its states are looked at: is the newest checkpoint that was promised there, and whole?"""
    _, seen = record_run(folder, kind)
    calm = victims.contents(folder / "calm" / "victim")

    def judge(place: Path, count: int) -> None:
        newest, damaged = storage.latest(place / "checkpoints")
        if damaged:
            raise Fault(f"damaged: {damaged[0][1]}")
        found, least = 0 if newest is None else int(newest.name[5:]), promised(seen.operations[:count])
        if found < least:
            raise Fault(f"step {found} is found, {least} had been saved")
        for name in ("adapter", "rollouts/[0-9]*", "values"):
            for whole in place.glob(name):
                try:
                    storage.validate(whole)
                except GraftError as error:
                    raise Fault(f"{whole.name} is a mixture: {error}") from None
        if (place / "finished.json").exists() and (place / "finished.json").read_bytes() != calm[
            "finished.json"
        ]:
            raise Fault("finished.json is another, or half of it")

    return Scene(seen.operations, judge)


def resumed(folder: Path, kind: str) -> Scene:
    """Record a run; from each of its states the same command goes on, and must end with the same bytes."""
    place, seen = record_run(folder, kind)
    calm = victims.trained(folder / "calm" / "victim")

    def judge(state: Path, count: int) -> None:
        path = victims.write_recipe(folder / "again.yaml", victims.settings(place, state, kind))
        again = children.start(["train", str(path)], folder / "talk.txt", victims.environment(place))
        code = again.wait()
        if code != 0:
            raise Fault(f"the same command ends with {code}: {again.said()[-300:]}")
        if names := victims.differing(calm, victims.trained(state)):
            raise Fault(f"after going on, {names} differ")
        if left := victims.litter(state):
            raise Fault(f"{left[0]} is left")

    return Scene(seen.operations, judge)


# Files that are written at once


def written(folder: Path, write: Write, *, twice: bool) -> Scene:
    """Record something that is written as a whole.  twice: over an older one, which then is the previous."""
    base = two_adapters(folder)
    begin, states = 0, [{}]
    with recorder.recording(folder / "recorded") as seen:
        for name in ("one", "two") if twice else ("one",):
            begin = len(seen.operations)
            write(base, name, folder / "recorded" / "out")
            seen.notice()
            states.append(victims.contents(folder / "recorded" / "out"))

    def judge(state: Path, count: int) -> None:
        storage.refuse_occupied(state / "out", force=True)  # sweeps, as for the next one who writes there
        found = victims.contents(state / "out") if (state / "out").exists() else {}
        if found not in states[-2:]:
            what = "a mixture" if found else "neither the new nor the old"
            raise Fault(f"{what}: {sorted(found)} of {sorted(states[-1])}")

    return Scene(seen.operations, judge, begin)


def saved(folder: Path, *, twice: bool) -> Scene:
    """Record `Adapter.save`, whose two files are replaced one after the other: a mixture must be refused."""
    base = two_adapters(folder)
    begin, known = 0, []
    with recorder.recording(folder / "recorded") as seen:
        for name in ("one", "two") if twice else ("one",):
            begin = len(seen.operations)
            base.adapters[name].save(folder / "recorded" / "out")
            seen.notice()
            known.append(loaded(base, folder / "recorded" / "out"))

    def judge(state: Path, count: int) -> None:
        try:
            found = loaded(base, state / "out")
        except GraftError:
            return
        if found not in known:
            raise Fault("a mixture of both is loaded")

    return Scene(seen.operations, judge, begin)


def two_adapters(folder: Path) -> Any:
    """Return the tiny base with two adapters whose settings and values differ."""
    base = graft.load(str(victims.home(folder / "home") / "model"))
    for name, alpha in (("one", 4), ("two", 8)):
        torch.manual_seed(alpha)
        adapter = base.attach(name, graft.LoRA(r=2, lora_alpha=alpha))
        with torch.no_grad():
            for parameter in adapter.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.02)
    return base


def loaded(base: Any, folder: Path) -> tuple[str, str]:
    """Return the settings of an adapter and a hash of its tensors, as they are loaded from a folder."""
    adapter = base.load_adapter(str(folder), "loaded")
    try:
        whole = hashlib.sha256()
        for key, tensor in sorted(adapter.file_state().items()):
            whole.update(key.encode() + tensor.cpu().float().numpy().tobytes())
        return repr(adapter.methods), whole.hexdigest()
    finally:
        base.detach("loaded")


def export(to: str) -> Write:
    """Return what exports an adapter of a base in a layout, over what is there."""
    return lambda base, name, out: graft.export(base, out, to, adapter=name, force=True, lossy=True)


def cell(what: str, scene: Callable[[Path], Scene], small: int | None, release: int | None = None) -> Cell:
    return Cell("crash", what, lambda folder: Crashes(folder, scene(folder)), counts(small, 200, release))


CELLS = [
    cell("first save", lambda f: commit_scene(f, 1), None),
    cell("later save", lambda f: commit_scene(f, 3), None),
    cell("run", lambda f: looked_at(f, "sft"), 150),
    cell("run with patience", lambda f: looked_at(f, "patience"), 0),
    cell("run that writes answers", lambda f: looked_at(f, "grpo"), 0),
    cell("run again", lambda f: resumed(f, "sft"), 1),
    cell("run with patience again", lambda f: resumed(f, "patience"), 0),
    cell("run that writes answers again", lambda f: resumed(f, "grpo"), 0),
    cell("adapter", lambda f: saved(f, twice=False), None),
    cell("adapter over another", lambda f: saved(f, twice=True), None),
    *(
        cell(f"export {to}{' over another' if twice else ''}",
             lambda f, to=to, twice=twice: written(f, export(to), twice=twice), 0)
        for to in ("hf", "gguf", "peft", "gguf-lora") for twice in (False, True)
    ),
]  # fmt: skip
