"""Thousands of requests on a server whose adapters come, go and change all the time.

    python benchmarks/serving/soak.py                     10,000 requests, some minutes
    python benchmarks/serving/soak.py --requests 300      a trial

Every answer is compared with what the same version of the same adapter writes alone, in this process, without
a server. Which version answered, the answer itself says (`system_fingerprint`); it must be one that was in
force while the request was under way. Some clients leave in the middle. At the end no slot may be taken, no
adapter held, and the memory must be what it was after the first tenth.
"""

import argparse
import asyncio
import hashlib
import json
import random
import shutil
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "common"))
import asking
import places
import results

PROMPTS = ("The kettle", "Write a product", "Description:", "A lamp that")
NEW = 6  # tokens of an answer
STILL, CHANGING, VERSIONS = (
    20,
    5,
    3,
)  # adapters that stay as they are, and those that change, of each kind one
LEAVE = 0.12  # of the clients, in the middle
ALWAYS = float("inf")


@dataclass
class Model:
    """An adapter as the client knows it.

    stashed: the folders of its versions.  prints, texts: of each version.  in_force: (from, to, version);
    version None while it is unloaded.
    """

    name: str
    stashed: list[Path]
    prints: list[str] = field(default_factory=list)
    texts: list[dict[str, str]] = field(default_factory=list)
    in_force: list[tuple[float, float, int | None]] = field(default_factory=list)

    def at(self, begun: float, ended: float) -> set[int | None]:
        """Return the versions that were in force at some time between."""
        return {version for start, stop, version in self.in_force if start <= ended and stop >= begun}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--at-once", type=int, default=16)
    parser.add_argument("--model", default="seedling")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder = places.empty(results.RAW.parent / "serving" / "soak")
    models = prepared(options.model, folder)
    total = sum(path.stat().st_size for path in folder.glob("root/*/*.safetensors"))
    budget = max(1, int(0.6 * total / 2**20))
    place = places.graft(
        options.model, folder / "log.txt", "--quant", "nf4", "--dtype", "fp32",
        "--adapters", str(folder / "root"), "--adapter-memory", str(budget), threads=options.threads,
    )  # fmt: skip
    try:
        facts = asyncio.run(Soak(place, models, folder / "root", options).run())
        facts |= {"ended": place.stop(), "budget_mib": budget, "adapters": len(models)}
    finally:
        place.stop()
    trial = options.requests < 10_000
    facts = {"what": "soak", "requests": options.requests, **facts, "machine": results.machine()}
    raw = results.RAW / "serving" / ("trial" if trial else "") / "soak.json"
    results.write_raw(raw, facts)
    for name, value in facts.items():
        print(f"{name:>22}  {value}")
    bad = facts["wrong"] or facts["failed"] or facts["slots"] or facts["users"] or facts["texts"]
    grown = not trial and facts["growth"] >= 0.05
    ended = facts["ended"] == 143  # as everything of Graft that SIGTERM ends, with all answers whole
    return int(bool(bad) or grown or not ended or not facts["golden"])


def prepared(model: str, folder: Path) -> list[Model]:
    """Write the adapters and all their versions, and what each writes alone."""
    import graft

    base = graft.load(model, quant="nf4", dtype="fp32")
    stash, models = folder / "stash", []
    names = places.write_adapters(base, stash, STILL)
    models = [Model(name, [stash / name]) for name in names]
    for number in range(CHANGING):
        versions = [stash / f"v{version}" for version in range(VERSIONS)]
        for version, path in enumerate(versions):
            first = 1000 + len(places.KINDS) * version + number  # the same kind in every version
            (written,) = places.write_adapters(base, path, 1, first=first)
            versions[version] = path / written
        models.append(Model(f"changing-{number}", versions))
    for one in models:
        for path in one.stashed:
            base.load_adapter(path, "alone")
            how = {"max_new_tokens": NEW, "min_new_tokens": 2}
            texts = [base.generate([prompt], ["alone"], **how)[0] for prompt in PROMPTS]
            base.detach("alone")
            one.texts.append(dict(zip(PROMPTS, texts, strict=True)))
            one.prints.append(print_of(path))
        shutil.copytree(one.stashed[0], folder / "root" / one.name)
        one.in_force.append((0.0, ALWAYS, 0))
    bare = Model("base", [], [""], [], [(0.0, ALWAYS, 0)])
    bare.texts.append(
        {prompt: base.generate([prompt], max_new_tokens=NEW, min_new_tokens=2)[0] for prompt in PROMPTS}
    )
    return [*models, bare]


def print_of(folder: Path) -> str:
    """Return the end of the fingerprint with which these files answer."""
    names = ("adapter_model.safetensors", "adapter_config.json")
    digests = [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names]
    return hashlib.sha256("".join(digests).encode()).hexdigest()[:12]


class Soak:
    """Requests, and what changes the adapters under them."""

    def __init__(
        self, place: places.Place, models: list[Model], root: Path, options: argparse.Namespace
    ) -> None:
        self._place, self._models, self._root = place, models, root
        self._requests, self._at_once = options.requests, options.at_once
        self._chance = random.Random(options.seed)
        self._counts: Counter[str] = Counter()
        self._examples: list[str] = []
        self._memory: list[int] = []
        self._done = 0

    async def run(self) -> dict:
        """Carry everything out; return what was found."""
        begun = time.perf_counter()
        golden = await self._golden()
        waiting = asyncio.Queue()
        for number in range(self._requests):
            waiting.put_nowait(number)
        changes = asyncio.create_task(self._change())
        await asyncio.gather(*(self._client(waiting) for _ in range(self._at_once)))
        changes.cancel()
        await asyncio.gather(changes, return_exceptions=True)
        last = await self._at_rest()
        tenth = max(1, len(self._memory) // 10)
        warm, end = (
            statistics.median(part) for part in (self._memory[tenth : 2 * tenth], self._memory[-tenth:])
        )
        return {
            **{name: self._counts[name] for name in ("right", "left", "refused", "failed", "wrong")},
            **{name: self._counts[name] for name in ("replaced", "unloaded", "loaded")},
            "slots": last["graft_slots"], "users": last["graft_adapter_users"], "texts": last["graft_texts"],
            "rss_warm_mib": round(warm / 2**20, 1), "rss_end_mib": round(end / 2**20, 1),
            "growth": round(end / warm - 1, 4), "golden": golden == await self._golden(),
            "seconds": round(time.perf_counter() - begun, 1), "examples": self._examples,
        }  # fmt: skip

    async def _golden(self) -> str:
        body = {"model": self._models[-1].name, "prompt": PROMPTS[0], "temperature": 0, "max_tokens": 40}
        return (await asking.ask(self._place.port, "/v1/completions", body)).text

    async def _client(self, waiting: asyncio.Queue) -> None:
        while not waiting.empty():
            waiting.get_nowait()
            await self._one()
            self._done += 1
            if self._done % max(1, self._requests // 200) == 0:
                self._memory.append(self._place.rss)

    async def _one(self) -> None:
        """Ask once and judge the answer."""
        chance = self._chance
        model, prompt = chance.choice(self._models), chance.choice(PROMPTS)
        body = {
            "model": model.name, "prompt": prompt, "temperature": 0, "max_tokens": NEW, "min_tokens": 2,
            "stream": chance.random() < 0.5,
        }  # fmt: skip
        leave = chance.randrange(3) if chance.random() < LEAVE else None
        if leave:
            body |= {"stream": True, "max_tokens": 60, "min_tokens": 50}
        begun = time.monotonic()
        try:
            answer = await asking.ask(self._place.port, "/v1/completions", body, leave_after=leave)
        except asking.Gone:
            self._counts["left"] += 1
            return
        except (OSError, ValueError, asyncio.IncompleteReadError) as error:
            self._tell("failed", f"{model.name}: {type(error).__name__}: {error}")
            return
        if leave is not None:
            return  # it had ended before this client left
        possible = model.at(begun, time.monotonic())
        if answer.status in (404, 429, 503) or answer.error:
            # An adapter that is unloaded is not known; a changed one is refused until it is loaded by name.
            changed = None in possible or len(possible) > 1
            self._tell(
                "refused" if changed else "failed", f"{model.name} {answer.status}: {answer.error[:200]}"
            )
            return
        prints = [one[-12:] for one in [answer.print_]] if model.prints[0] else [""]
        version = model.prints.index(prints[0]) if prints[0] in model.prints else None
        right = version is not None and version in possible and model.texts[version][prompt] == answer.text
        if right:
            self._counts["right"] += 1
        else:
            self._tell("wrong", f"{model.name} v{version} of {possible}: {answer.text!r}")

    def _tell(self, kind: str, text: str) -> None:
        self._counts[kind] += 1
        if kind != "refused" and len(self._examples) < 10:
            self._examples.append(f"{kind}: {text}")

    async def _change(self) -> None:
        """Replace, unload and load adapters in turns, without a pause but a short one."""
        changing = [model for model in self._models if len(model.stashed) > 1]
        while True:
            model = self._chance.choice(changing)
            now = model.in_force[-1][2]
            if now is not None and self._chance.random() < 0.2:
                await self._become(model, None)
                self._counts["unloaded"] += 1
            else:
                others = [version for version in range(VERSIONS) if version != now]
                await self._become(model, self._chance.choice(others))
                self._counts["replaced" if now is not None else "loaded"] += 1
            await asyncio.sleep(0.02)

    async def _become(self, model: Model, version: int | None) -> None:
        """Let another version be in force. Until the server has said so, both may answer."""
        start, _, before = model.in_force[-1]
        model.in_force.append((time.monotonic(), ALWAYS, version))
        if version is not None:
            for name in ("adapter_config.json", "adapter_model.safetensors"):
                partial = self._root / model.name / f"{name}.partial"
                shutil.copyfile(model.stashed[version] / name, partial)
                partial.replace(self._root / model.name / name)
        verb = "unload" if version is None else "load"
        path = f"/v1/{verb}_lora_adapter"
        answer = await asking.ask(self._place.port, path, {"lora_name": model.name}, key=places.KEY)
        if answer.status == 503 and version is not None:  # texts hold all the room
            answer = await asking.ask(self._place.port, path, {"lora_name": model.name}, key=places.KEY)
        if answer.status != 200:
            raise RuntimeError(f"{verb} {model.name}: {answer.status} {answer.error}")
        model.in_force[-2] = (start, time.monotonic(), before)

    async def _at_rest(self) -> dict[str, float]:
        """Return the server's numbers when nothing is under way any more."""
        until = time.monotonic() + 60
        while True:
            text = (await asking.ask(self._place.port, "/metrics")).text
            found = places.numbers(text)
            names = ("graft_slots", "graft_adapter_users", "graft_texts")
            if not any(found[name] for name in names) or time.monotonic() > until:
                return found
            await asyncio.sleep(0.1)


if __name__ == "__main__":
    print(json.dumps({"exit": (code := main())}))
    sys.exit(code)
