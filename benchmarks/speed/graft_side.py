"""Graft's side: its public functions, with its own defaults wherever a row does not ask for something.

A training run is Graft's whole loop, held between two steps by its observer while another side has its turn.
"""

import inspect
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import internals
import link
import memory
import parts
import torch
import weights
from same import RATE, ROWS, count, parameters, rate, sample
from shapes import SHAPES

import graft

MANY = 1 << 20  # steps of a run that the harness ends


class Stopped(Exception):
    """The harness has seen enough."""


class Paced(internals.Observer):  # type: ignore[misc]
    """Lets a run take as many steps as the harness asks for, and times them.

    dimensions that the profile needs come with the order; `work` says what one step has done.
    """

    def __init__(self, pipe: link.Link, warm: int, facts: dict[str, Any]) -> None:
        self.pipe = pipe
        self.left = warm
        self.facts = facts
        self.warm = True
        self.orders = pipe.orders()
        self.profile: Any = None
        self.order: dict[str, Any] = {}
        self.peak = 0.0
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self.tokens = 0

    def start(self, plan: dict[str, Any]) -> None:
        """Note what is trained; the next step begins."""
        self.facts["trained"] = plan["trained"]
        self.since = time.perf_counter()

    def note(self, text: str) -> None:
        """Leave notes to the log."""
        print(text)

    def step(self, record: dict[str, Any]) -> None:
        """Note the step; after the last one that was asked for, wait for the next order."""
        spent = time.perf_counter() - self.since
        self.seconds.append(spent)
        self.losses.append(record["loss"])
        self.work, self.tokens = record["tokens"] - self.tokens, record["tokens"]
        self.left -= 1
        if self.left == 0:
            self._report(spent)
            self._wait()
        self.since = time.perf_counter()

    def _report(self, spent: float) -> None:
        if self.profile is not None:
            self.profile.__exit__(None, None, None)
            events = self.profile.events()
            self.pipe.say(parts=parts.split(events, spent, **self.order["dimensions"]))
            self.profile = None
        elif self.warm:
            self.pipe.ready(**{"work": self.work} | self.facts, warm=self.losses)
            self.warm = False
        else:
            self.pipe.say(seconds=self.seconds, results=self.losses)
        self.seconds, self.losses = [], []

    def _wait(self) -> None:
        self.order = next(self.orders, {})
        if not self.order:
            raise Stopped
        self.left = self.order.get("units", 1)
        if self.order["do"] == "profile":
            self.peak = self.peak or memory.peak() / link.MIB
            self.profile = parts.profiler()
            self.profile.__enter__()

    def end(self) -> None:
        """Send the peak of all steps."""
        self.pipe.say(peak_mib=self.peak or memory.peak() / link.MIB)


class Rows(internals.Source):  # type: ignore[misc]
    """One row of token ids a step, every token of it supervised: what a run needs of a feed."""

    def __init__(self, base: Any, ids: torch.Tensor) -> None:
        self.batches = [[internals.random_batch(base, ids[row : row + 1])] for row in range(len(ids))]
        self.steps_per_epoch = len(ids)

    def step(self, epoch: int, index: int) -> list[Any]:
        """Return the micro-batches of a step."""
        return self.batches[index]

    def longest(self) -> Any:
        """Return the batch that needs most memory."""
        return self.batches[0][0]


def load(folder: Path, quant: str | None, dtype: str) -> Any:
    """Load a model as a user would who asks for this dtype; "auto" leaves the choice to Graft.

    Where Graft does not choose by measurement, "auto" is fp32.
    """
    by_itself = inspect.signature(graft.load).parameters["dtype"].default == "auto"
    return graft.load(folder, quant, **({} if dtype == "auto" and by_itself else {"dtype": asked(dtype)}))


def asked(dtype: str) -> str:
    """Return the dtype that is passed on."""
    return "fp32" if dtype == "auto" else dtype


def train(pipe: link.Link, spec: dict[str, Any]) -> None:
    """Train by Graft's loop: clip, AdamW, log; a constant rate, so that any number of steps is alike."""
    shape, folder = SHAPES[spec["shape"]], Path(spec["folder"])
    base = load(weights.model(shape, folder), spec["quant"], spec["dtype"])
    if spec["method"] == "full":
        base.attach("trained", graft.Full())
    else:
        base.load_adapter(weights.adapter(shape, folder), "trained", force=True)
    pipe.loaded()
    how = {"max_steps": MANY, "save_every": MANY, "eval_every": MANY, "lr": rate(spec), "warmup": 0.0}
    how |= {"schedule": "constant", "optimizer": spec["optimizer"]}
    feed = Rows(base, weights.rows(shape, spec["length"], ROWS))
    # The dtype of the tables tells which numbers the products are computed in.
    observer = Paced(pipe, spec["warm"], {"work": spec["length"], "variant": shown(base.dtype)})
    internals.mark_optimizer(parts.OPTIMIZER)
    with tempfile.TemporaryDirectory() as run:
        try:
            internals.trained_loss(base, "trained", feed, run, observer=observer, **how)
        except Stopped:
            observer.end()


def shown(dtype: torch.dtype) -> str:
    """Return a dtype as tables show it.

    >>> shown(torch.bfloat16), shown(torch.float32)
    ('bf16', 'fp32')
    """
    return {torch.bfloat16: "bf16", torch.float32: "fp32", torch.float16: "fp16"}[dtype]


def load_once(pipe: link.Link, spec: dict[str, Any]) -> None:
    """Load and quantise a model; the harness starts a process for each time."""
    folder = weights.model(SHAPES[spec["shape"]], Path(spec["folder"]))

    load(weights.model(SHAPES["tiny"], Path(spec["folder"])), spec["quant"], "auto")  # imports, kernels

    def unit() -> None:
        pipe.kept = load(folder, spec["quant"], "auto")

    pipe.loaded()
    link.serve(pipe, unit, warm=0, ready={"work": 1})


def optimizer(pipe: link.Link, spec: dict[str, Any]) -> None:
    """Update parameters whose gradients stay the same."""
    named = parameters(SHAPES[spec["shape"]], spec["layers"])
    adapter = SimpleNamespace(
        named_parameters=named.items, param_groups=lambda lr: [{"params": list(named.values()), "lr": lr}]
    )
    updating = internals.optimizer_of(spec["optimizer"], adapter, RATE)
    pipe.loaded()
    before = sample(named)
    link.serve(
        pipe, lambda: updating.step(1.0), warm=spec["warm"], ready={"work": count(named)},
        last=lambda: {"sample": (sample(named) - before).tolist()},
    )  # fmt: skip


def decode(pipe: link.Link, spec: dict[str, Any]) -> None:
    """Write texts greedily, each row with an adapter of its own if there are some."""
    shape, folder = SHAPES[spec["shape"]], Path(spec["folder"])
    base = load(weights.model(shape, folder), spec["quant"], "auto")
    names = [f"adapter {number}" for number in range(spec["adapters"])]
    for number, name in enumerate(names):
        base.load_adapter(weights.adapter(shape, folder, number, trained=True), name, force=True)
    pipe.loaded()
    prompts = [weights.words(ids) for ids in weights.rows(shape, spec["prompt"], spec["rows"]).tolist()]
    rows = [names[row % len(names)] if names else None for row in range(spec["rows"])]

    how = {"exact": True} if spec.get("exact") else {}

    def unit() -> list[list[int]]:
        texts = base.generate(prompts, rows, max_new_tokens=spec["new"], batch_size=spec["rows"], **how)
        return [weights.numbers(text) for text in texts]

    facts = {"work": spec["rows"] * spec["new"], "variant": shown(base.dtype)}
    link.serve(pipe, unit, warm=spec["warm"], ready=facts)


def demo(pipe: link.Link, spec: dict[str, Any]) -> None:
    """Train as `graft demo` does, or write one of its answers at a time."""
    if spec["what"] == "train":
        with tempfile.TemporaryDirectory() as run:
            recipe = internals.demo.recipe(Path(run) / "run")
            recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"max_steps": MANY})})
            pipe.loaded()
            observer = Paced(pipe, spec["warm"], {})
            try:
                graft.run(recipe, observer=observer)
            except Stopped:
                observer.end()
        return
    base = load(Path("seedling"), None, "auto")  # the name of the embedded model
    pipe.loaded()
    items, _ = internals.demo.held_out()
    prompt = internals.prompt(items[0])
    answer = base.generate([prompt], max_new_tokens=spec["new"])[0]
    written = len(base.tokenizer(answer, add_special_tokens=False)["input_ids"])
    unit = lambda: len(base.generate([prompt], max_new_tokens=spec["new"]))
    link.serve(pipe, unit, warm=spec["warm"], ready={"work": written, "variant": shown(base.dtype)})


KINDS = {"train": train, "load": load_once, "optimizer": optimizer, "decode": decode, "demo": demo}
