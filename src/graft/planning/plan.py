"""Plan: what a run will hold in memory and whether that fits, before a weight is read.

    held  = weights + adapter + gradients + optimizer            exact: the objects of the run, as sketches
    train = held + a micro-batch's forward and backward          one step of the sketch
    save  = held + one more copy of adapter and optimizer        on their way to disk

The process itself (interpreter, libraries) is measured, as is the memory of the machine. Bytes of a step are those of
the operations' results; on the CPU glibc keeps freed blocks besides, by a measured share. What a GPU's allocator keeps
is not in them.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers.models.auto.configuration_auto import AutoConfig

from graft.core.method import Method
from graft.core.registry import find, names
from graft.data import load_rows
from graft.data.preparation import label_names
from graft.errors import GraftError
from graft.models.files import read_config
from graft.models.load import DTYPES
from graft.objectives.lm import CHUNK
from graft.planning.sketch import Step, alike, peak, sketch, stored, unreal, weights
from graft.recipe import NewTokenizer, Recipe, read
from graft.seedling import located
from graft.sizes import KIB, MIB, size
from graft.stages.sft import SFT
from graft.stages.stage import Stage, methods_of, stage_of, task_of
from graft.training.levers import Lever, Use, levers
from graft.training.log import usage
from graft.training.optimizers import BLOCK, AdamW8bit

# Of a step's blocks that glibc takes from its heap, this share is lost in holes: benchmarks/memory/plan_check.py.
RETAINED = 0.8


@dataclass(frozen=True)
class Shape:
    """What a run asks of memory besides its base and methods.

    rows: of a micro-batch.  length: tokens of a row.  eval_rows: rows of an evaluation's batch.
    budget: bytes of optimizer state that a paged optimizer keeps resident.  stage: what a batch is, and its loss.
    """

    rows: int = 2
    length: int = 1024
    eval_rows: int = 8
    checkpointing: bool = False
    optimizer: str = "adamw"
    budget: int = 0
    stage: Stage = SFT

    def step(self, rows: int | None = None) -> Step:
        """One micro-batch of this shape."""
        return Step(rows or self.rows, self.length, self.checkpointing, self.stage)


@dataclass(frozen=True)
class Plan:
    """Bytes everywhere.  parts: what is held, and the step.  peaks: train, evaluate, save, with the process.

    micro_batch: the largest that fits, 0 where none does.  available: memory that this process can have.
    """

    base: str
    parameters: int
    trained: int
    sites: int
    parts: dict[str, int]
    peaks: dict[str, int]
    process: int
    available: int
    device: str
    micro_batch: int
    levers: list[Lever] = field(default_factory=list)

    @property
    def fits(self) -> bool:
        """Whether every phase fits into what the machine can give."""
        return max(self.peaks.values()) <= self.available

    def facts(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return asdict(self) | {"fits": self.fits}

    def lines(self) -> list[str]:
        """For the terminal."""
        parts, share = self.parts, 100 * self.trained / self.parameters
        made = [
            f"base     {self.base}   {self.parameters:,} parameters   {size(parts['weights'])}",
            f"adapter  {self.trained:,} trained ({share:.2g} %) on {self.sites} sites   {size(parts['adapter'])}",
            "training "
            + ", ".join(
                f"{part} {size(parts[part])}" for part in ("gradients", "optimizer", "step", "allocator")
            ),
            "peak     " + ", ".join(f"{phase} {size(most)}" for phase, most in self.peaks.items()),
            f"memory   {size(self.available)} on {self.device}, {size(self.process)} of it this process: "
            + ("fits" if self.fits else "DOES NOT FIT"),
            f"largest  train.micro_batch_size={self.micro_batch}"
            if self.micro_batch
            else "largest  not even one row fits",
        ]
        return made + [
            f"lever    {lever.change}   saves {size(lever.saves)}   {lever.costs}" for lever in self.levers
        ]

    def __str__(self) -> str:
        return "\n".join(self.lines())


def plan(recipe: str | Path | dict[str, Any] | Recipe, overrides: Iterable[str] = ()) -> Plan:
    """The plan of a recipe. Reads the model's config and, for classes, the rows; no weights."""
    chosen = read(recipe, overrides)
    config = config_of(chosen)
    train, positions = chosen.train, getattr(config, "max_position_embeddings", None)
    shape = Shape(
        rows=train.micro_batch_size,
        length=min(chosen.data.max_length, positions or chosen.data.max_length),
        eval_rows=chosen.evaluate.batch_size,
        checkpointing=train.gradient_checkpointing,
        optimizer=train.optimizer,
        budget=int(train.paged_budget_mb * MIB),
        stage=stage_of(chosen),
    )
    stored_as = {"quant": chosen.quant, "group_size": chosen.group_size, "dtype": DTYPES[chosen.dtype]}
    kind = stored_as | {"task": task_of(chosen, config)}
    found = plan_model(config, _methods(chosen), shape, **kind)
    return replace(
        found, base=chosen.model if isinstance(chosen.model, str) else f"fresh {config.model_type}"
    )


def plan_model(
    config: Any, methods: Sequence[Method], shape: Shape, *,
    quant: str = "none", group_size: int = 0, dtype: torch.dtype = torch.bfloat16, task: str | None = None,
) -> Plan:  # fmt: skip
    """The plan of training `methods` on a base of this transformers config.

    quant, group_size, task: as for `graft.load`.  dtype: of the base's other weights and of activations.
    """
    kind = {"quant": quant, "group_size": group_size, "dtype": dtype, "task": task}
    available, device, process = memory()
    standing = _standing(config, methods, shape, kind)
    held, uniform = standing.held, standing.uniform

    def cost(step: Step, training: bool = True) -> tuple[int, int]:
        """(tensors of the step, what the allocator keeps beside them)."""
        whole, heap = peak(config, methods, step, training=training, uniform=uniform, **kind)
        return whole, round(RETAINED * heap) if device == "cpu" else 0

    # Logits exist for a chunk of positions at a time: far enough from here a row costs the same everywhere.
    further = shape.rows + max(shape.rows, -(-2 * CHUNK // shape.length))
    now, larger = cost(shape.step()), cost(shape.step(further))
    leaner = cost(replace(shape, checkpointing=True).step())
    evaluation = cost(replace(shape, checkpointing=False).step(shape.eval_rows), training=False)
    kept, parts = (
        process + sum(held.values()),
        {**held, "step": max(now[0], standing.update), "allocator": now[1]},
    )
    peaks = {
        "train": kept + parts["step"] + parts["allocator"],
        "evaluate": kept - held["gradients"] + sum(evaluation),
        "save": kept - held["gradients"] + held["adapter"] + standing.states,
    }
    per_row = max(1, (larger[0] - now[0]) // (further - shape.rows))  # tensors: holes do not grow in a line
    more = (available - kept - now[0] - max(now[1], larger[1])) // per_row
    fits = peaks["train"] <= available
    fitting = shape.rows + max(more, 0) if fits else min(max(shape.rows + more, 0), shape.rows - 1)
    draft = Plan(config.model_type, *standing.counts, parts, peaks, process, available, device, fitting)
    saved = {
        "row": per_row,
        "checkpointing": 0 if shape.checkpointing else now[0] - leaner[0],
        "nf4": standing.lighter,
    }
    return replace(draft, levers=_levers(draft, shape, methods, saved))


@dataclass(frozen=True)
class _Standing:
    """What is there before a step.  held: bytes by part.  counts: parameters, trained ones, sites.  uniform: `alike`.

    states: bytes of the whole optimizer.  update: of an optimizer's temporaries.  lighter: that NF4 would save.
    """

    held: dict[str, int]
    counts: tuple[int, int, int]
    uniform: bool
    states: int
    update: int
    lighter: int


def count_methods(model: str) -> dict[str, int | str]:
    """What each method trains with its defaults on a base (path, hub id or seedling): a count, or why it cannot."""
    found: dict[str, int | str] = {}
    with unreal():
        base = sketch(read_config(model))
        for name in names():
            try:
                found[name] = base.attach(name, find(name)()).count()
                base.detach(name)
            except GraftError as error:
                found[name] = error.given
    return found


def _standing(config: Any, methods: Sequence[Method], shape: Shape, kind: dict[str, Any]) -> _Standing:
    with unreal():
        base = sketch(config, **kind)
        adapter = base.attach("plan", methods)
        trained = adapter.parameters()
        states = optimizer_bytes(shape.optimizer, trained)
        held = {
            "weights": weights(base),
            "adapter": stored(list(adapter.checkpoint_state().values())),
            "gradients": stored(trained),
            "optimizer": min(states, shape.budget) if shape.optimizer.startswith("paged") else states,
        }
        counts = base.count(), adapter.count(), len({site.name for site, _ in adapter.inserts})
        update = (
            2 * 4 * max((p.numel() for p in trained), default=0)
        )  # the largest tensor's: two fp32 temporaries
        lighter = kind | {"quant": "nf4", "group_size": 0}
        packed = weights(sketch(config, **lighter)) if kind["quant"] == "none" else held["weights"]
        return _Standing(held, counts, alike(base), states, update, lighter=held["weights"] - packed)


def optimizer_bytes(kind: str, trained: Sequence[torch.Tensor]) -> int:
    """Bytes of AdamW's states: two moments in fp32 or in 8 bits, and an fp32 master of 16-bit parameters."""
    total = 0
    for p in trained:
        wide = torch.promote_types(p.dtype, torch.float32)
        small = kind.endswith("8bit") and p.numel() >= AdamW8bit.smallest
        moments = 2 * (p.numel() + 4 * -(-p.numel() // BLOCK)) if small else 2 * wide.itemsize * p.numel()
        total += moments + (wide.itemsize * p.numel() if wide != p.dtype else 0)
    return total


def memory() -> tuple[int, str, int]:
    """(bytes this process can have in all, "cpu" or "cuda", bytes it has now): what its control group leaves it."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0], "cuda", 0
    now, facts, group = usage(torch.device("cpu"))[0], Path("/proc/meminfo"), Path("/sys/fs/cgroup")
    if not facts.exists():  # not Linux: all that is built in
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "cpu", now
    free = next(
        int(line.split()[1]) * KIB
        for line in facts.read_text().splitlines()
        if line.startswith("MemAvailable")
    )
    limit, used = group / "memory.max", group / "memory.current"
    if limit.exists() and used.exists() and limit.read_text().strip() != "max":
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    return free + now, "cpu", now


def config_of(recipe: Recipe) -> Any:
    """Return the transformers config of a recipe's base; of a hub model only that file is fetched."""
    if isinstance(recipe.model, str):
        return read_config(recipe.model)
    values = dict(recipe.model.config)
    tokens = recipe.model.tokenizer
    vocabulary = (
        tokens.vocab_size
        if isinstance(tokens, NewTokenizer)
        else len(Tokenizer.from_file(str(Path(tokens) / "tokenizer.json")).get_vocab())
    )
    return AutoConfig.for_model(values.pop("model_type", "llama"), **{"vocab_size": vocabulary} | values)


def _methods(recipe: Recipe) -> list[Method]:
    """Return the recipe's methods; rows are read only where their classes make a head."""
    stage = stage_of(recipe)
    if not stage.labelled:
        return methods_of(recipe)
    rows = load_rows(located(recipe.data), stage.accepts()).train
    return methods_of(recipe, label_names(rows), tagged=rows[0].kind == "tags")


def _levers(draft: Plan, shape: Shape, methods: Sequence[Method], saved: dict[str, int]) -> list[Lever]:
    """Return the three cheapest levers that save at least 1 % of the training peak.

    saved: bytes per row, by checkpointing, by nf4.
    """
    states = draft.parts["optimizer"]
    use = Use(
        rows=shape.rows,
        length=shape.length,
        rank=next((method.r for method in methods if hasattr(method, "r")), 0),
        row=saved["row"],
        recomputed=saved["checkpointing"],
        states=states - min(states, shape.budget),
        packed=saved["nf4"] if all(method.quantisable for method in methods) else 0,
        trained=draft.parts["adapter"] + draft.parts["gradients"] + states,
    )
    return [lever for lever in levers(use) if lever.saves > draft.peaks["train"] // 100][:3]
