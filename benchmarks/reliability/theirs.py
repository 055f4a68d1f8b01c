"""The same faults on transformers' Trainer with PEFT's LoRA, as far as they apply: cells beside Graft's.

The run is the usual one: checkpoints every second step, two are kept, and the same script goes on from what
`get_last_checkpoint` finds. An error of any kind counts as seen, also one without words of its own. Damaged
files: resuming from a checkpoint, loading an adapter, loading a model.
"""

import random
import resource
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import children
import flips
import recorder
import victims
from cells import HARMLESS, HELD, Cell, Fault, Outcome, counts

STEPS, SAVED = 12, 2
TOOL = "transformers"
children.CONTEXT.set_forkserver_preload([*children.PRELOADED, "transformers.trainer", "peft"])
PARTS = 16  # limits of the size of a file


def train(home: str, output: str, rate: float = 0.01, nap_s: float = 0.0) -> int:
    """Carry out the run, or go on from its last checkpoint; write the adapter."""
    import json

    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments
    from transformers.trainer_utils import get_last_checkpoint

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(f"{home}/model", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(f"{home}/model")
    chosen = LoraConfig(r=2, target_modules="all-linear", lora_dropout=0.05, task_type="CAUSAL_LM")
    model = get_peft_model(model, chosen)
    rows = [json.loads(line) for line in Path(home, "rows.jsonl").read_text().splitlines()]
    ids = [tokenizer(row["prompt"] + row["completion"])["input_ids"][:24] for row in rows]
    width = max(map(len, ids))
    data = [
        {"input_ids": torch.tensor(one + [0] * (width - len(one))),
         "attention_mask": torch.tensor([1] * len(one) + [0] * (width - len(one))),
         "labels": torch.tensor(one + [-100] * (width - len(one)))}
        for one in ids
    ]  # fmt: skip

    class Nap(TrainerCallback):
        def on_step_end(self, *arguments: Any, **keywords: Any) -> None:
            time.sleep(nap_s)

    settings = TrainingArguments(
        output_dir=output, max_steps=STEPS, per_device_train_batch_size=4, learning_rate=rate,
        save_steps=SAVED, save_total_limit=2, logging_steps=1, report_to=[], use_cpu=True, disable_tqdm=True,
        seed=0, dataloader_num_workers=0,
    )  # fmt: skip
    trainer = Trainer(model=model, args=settings, train_dataset=data, callbacks=[Nap()])
    last = get_last_checkpoint(output) if Path(output).exists() else None
    trainer.train(resume_from_checkpoint=last)
    model.save_pretrained(f"{output}/adapter")
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    Path(output, "loss.json").write_text(json.dumps(losses))
    return 0


def results(output: Path) -> dict[str, bytes]:
    """Return the files that must be equal: the adapter and the losses of all steps."""
    names = ("adapter/adapter_model.safetensors", "loss.json")
    return {name: (output / name).read_bytes() for name in names if (output / name).exists()}


class Theirs:
    """A stand with the undisturbed run.  total: of enumerated cases."""

    total: int | None = None

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder, victims.home(folder / "home")
        child = self.start(folder / "calm")
        if child.wait() != 0:
            raise Fault(f"the undisturbed run fails: {child.said()[-600:]}")
        self.seconds = time.perf_counter() - child.began
        self.calm = results(folder / "calm")

    def start(self, output: Path, before: Callable[[], object] | None = None, **how: float) -> children.Child:
        program = partial(train, str(self.home), str(output), **how)
        talk = self.folder / f"talk-{output.name}-{how.get('rate', 0)}.txt"
        return children.launch(program, talk, victims.environment(self.home), before)

    def fresh(self) -> Path:
        place = recorder.cleared(self.folder / "state") / "run"
        place.parent.mkdir(parents=True)
        return place

    def finish(self, place: Path) -> None:
        """Go on without a fault. Raises Fault unless the end is that of the undisturbed run."""
        child = self.start(place)
        if child.wait() != 0:
            said = child.said().strip().splitlines()
            raise Fault(f"it cannot go on: {said[-1][:300] if said else ''}")
        if names := victims.differing(self.calm, results(place)):
            raise Fault(f"after going on, {names} differ")

    def name(self, number: int) -> str:
        return f"number {number}"

    def case(self, number: int) -> Outcome:
        raise NotImplementedError

    def close(self) -> None:
        recorder.cleared(self.folder / "state")


class Kills(Theirs):
    """One kill at a random moment, then the same script."""

    def case(self, number: int) -> Outcome:
        place = self.fresh()
        child = self.start(place)
        time.sleep(random.Random(f"kill {number}").uniform(0.3, 1.0) * self.seconds)
        child.kill()
        child.wait()
        self.finish(place)
        return Outcome(sums={"kills": 1})


class Signals(Theirs):
    """A signal between or in the steps, which are made to last a quarter of a second each."""

    def name(self, number: int) -> str:
        return f"{('SIGTERM', 'SIGINT')[number % 2]}, number {number}"

    def case(self, number: int) -> Outcome:
        place = self.fresh()
        child = self.start(place, nap_s=0.25)
        while child.running() and not list(place.glob("checkpoint-*")):
            time.sleep(0.01)
        time.sleep(random.Random(f"signal {number}").uniform(0.0, 1.0))
        sent = time.perf_counter()
        child.send((signal.SIGTERM, signal.SIGINT)[number % 2])
        code = child.wait(60)
        seconds = time.perf_counter() - sent
        if code is None or seconds > 10:
            raise Fault(f"not obeyed in 10 s: {code}")
        self.finish(place)
        return Outcome(facts={"seconds": seconds})


class Races(Theirs):
    """Two scripts with other learning rates into one folder."""

    def case(self, number: int) -> Outcome:
        place = self.fresh()
        first = self.start(place, rate=0.01)
        time.sleep(random.Random(f"race {number}").uniform(0.0, self.seconds))
        second = self.start(place, rate=0.02)
        codes = (first.wait(), second.wait())
        if sum(code == 0 for code in codes) != 1:
            raise Fault(f"exit codes {codes}: not one winner")
        return HELD


class Limits(Theirs):
    """No file may exceed a size; then the same script without a limit."""

    total = PARTS

    def case(self, number: int) -> Outcome:
        largest = max(map(len, victims.contents(self.folder / "calm").values()))
        place = self.fresh()
        child = self.start(place, before=partial(limited, largest * number // PARTS))
        if child.wait() == 0:
            raise Fault("it ends well although a file did not fit")
        self.finish(place)
        return HELD


def limited(size: int) -> None:
    """Let no file of this process grow beyond a size."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


class Checkpoints(Theirs):
    """A damaged newest checkpoint, from which the script goes on.  damage: Flips or Damages."""

    def __init__(self, folder: Path, damage: type[flips.Flips]) -> None:
        super().__init__(folder)
        newest = max(
            (folder / "calm").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]) < STEPS
        )
        self.newest = newest.name
        victim = flips.Victim(newest, newest, lambda place: None)
        self.damage = damage(folder / "damages", victim)
        self.total = self.damage.total

    def name(self, number: int) -> str:
        return self.damage.name(number)

    def case(self, number: int) -> Outcome:
        place = victims.copy(self.folder / "calm", self.fresh())
        for path in place.iterdir():  # what came after this checkpoint is gone
            if path.name != self.newest and path.is_dir():
                recorder.cleared(path)
        (place / "loss.json").unlink()
        self.damage.damage(place / self.newest, number)
        child = self.start(place)
        if child.wait() != 0:
            return HELD
        if names := victims.differing(self.calm, results(place)):
            raise Fault(f"it goes on without a word, and {names} differ")
        return HARMLESS


class Loaded:
    """A damaged adapter or model, loaded by `from_pretrained`.  make: (home) -> victim."""

    def __init__(self, folder: Path, damage: type[flips.Flips], make: Callable[[Path], flips.Victim]) -> None:
        self.damage = damage(folder, make(victims.home(folder / "home")))
        self.total = self.damage.total

    def name(self, number: int) -> str:
        return self.damage.name(number)

    def case(self, number: int) -> Outcome:
        victim = self.damage.victim
        place = victims.copy(victim.folder, self.damage.folder / "state" / victim.folder.name)
        self.damage.damage(place, number)
        try:
            found = victim.door(place)
        except Exception:
            return HELD
        if found == self.damage.whole:
            return HARMLESS
        raise Fault("loaded without a word, and other than it was")

    def close(self) -> None:
        self.damage.close()


def model_of(home: Path) -> flips.Victim:
    """A model's folder. What counts is every tensor and the settings of the model."""
    from transformers import AutoModelForCausalLM

    def door(place: Path) -> object:
        model = AutoModelForCausalLM.from_pretrained(place)
        facts = model.config.to_dict() | model.generation_config.to_dict()
        return flips.hashed(model.state_dict()), repr(
            {k: v for k, v in facts.items() if k != "_name_or_path"}
        )

    return flips.Victim(
        home / "model", home / "model", door, skip=("tokenizer.json", "tokenizer_config.json")
    )


def adapter_of(home: Path) -> flips.Victim:
    """An adapter's folder. What counts is every tensor of the adapter and its settings."""
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(home / "model")
    chosen = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(model, chosen).save_pretrained(home / "adapter")
    (home / "adapter" / "README.md").unlink(missing_ok=True)

    def door(place: Path) -> object:
        base = AutoModelForCausalLM.from_pretrained(home / "model")
        loaded = PeftModel.from_pretrained(base, str(place))
        return flips.hashed(get_peft_model_state_dict(loaded)), repr(loaded.peft_config["default"].to_dict())

    return flips.Victim(home / "adapter", home / "adapter", door)


def cell(part: str, what: str, build: Callable[[Path], Any], quick: int, release: int | None) -> Cell:
    return Cell(part, what, build, counts(0, quick, release), tool=TOOL)


CELLS = {one.name: one for one in (
    cell("kill -9", "lora-fp32", Kills, 4, 50),
    cell("signals", "step", Signals, 4, 40),
    cell("races", "in any phase", Races, 4, 50),
    cell("file size limit", "run", Limits, 4, None),
    cell("flips", "checkpoint", lambda f: Checkpoints(f, flips.Flips), 20, 300),
    cell("cuts and swaps", "checkpoint", lambda f: Checkpoints(f, flips.Damages), 20, 200),
    *(cell(part, what, lambda f, kind=kind, make=make: Loaded(f, kind, make), 100, release)
      for part, kind, release in (("flips", flips.Flips, 1000), ("cuts and swaps", flips.Damages, None))
      for what, make in (("saved adapter", adapter_of), ("export hf", model_of))),
)}  # fmt: skip
