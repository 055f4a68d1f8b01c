"""Plan: what a run will hold in memory and whether that fits, before a weight is read.

    train    = held + a micro-batch's forward and backward         one step of the sketch
    evaluate = held - gradients + a batch's forward                 one forward of the sketch
    save     = held - gradients + a copy of adapter and optimizer   on their way to disk

    held     = process + weights + adapter + gradients + optimizer  exact: the objects of the run, as sketches

The process itself (interpreter, libraries) is measured, as is the memory of the machine. Bytes of a step are
those of the operations' results. On the CPU glibc also keeps freed blocks, by a measured share; what a GPU's
allocator keeps is not counted.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers.models.auto.configuration_auto import AutoConfig

from graft.base import adapter_files
from graft.core.method import Method
from graft.core.registry import find, names
from graft.data import load_rows
from graft.data.preparation import label_names
from graft.errors import GraftError
from graft.models.files import read_config
from graft.models.load import DTYPES
from graft.objectives.lm import CHUNK
from graft.planning.dtype import settled
from graft.planning.fit import check_tokenizer, fitting, of_adapter, positions_taken
from graft.planning.held import Held, held_by
from graft.planning.machine import memory
from graft.planning.sketch import Step, peak, sketch, unreal
from graft.recipe import NewTokenizer, Recipe, read
from graft.recipe.chain import read_chain
from graft.seedling import located
from graft.sizes import MIB, size
from graft.stages.sft import SFT
from graft.stages.stage import Stage, methods_of, stage_of, task_of
from graft.training.levers import Lever, Use, levers

# Of a step's blocks that glibc takes from its heap, this share is lost in holes:
# benchmarks/memory/plan_check.py.
RETAINED = 0.8


@dataclass(frozen=True)
class Shape:
    """The shape of a run's steps, for memory planning.

    rows: of a micro-batch.  length: tokens of a row.  eval_rows: rows of an evaluation's batch.
    budget: bytes of optimizer states that a paged optimizer keeps resident.
    stage: makes the batch and its loss.
    """

    rows: int = 2
    length: int = 1024
    eval_rows: int = 8
    checkpointing: bool = False
    optimizer: str = "adamw"
    budget: int = 0
    stage: Stage = SFT

    def step(self, rows: int | None = None) -> Step:
        """Return one micro-batch of this shape, or of so many rows."""
        return Step(rows or self.rows, self.length, self.checkpointing, self.stage.as_planned())


@dataclass(frozen=True)
class Cost:
    """Bytes of one step.

    tensors: what the operations hold at the peak.  holes: what the allocator keeps besides.
    """

    tensors: int
    holes: int


@dataclass(frozen=True)
class Plan:
    """The memory of a run, in bytes.

    parts: what is held, the step, and what the allocator keeps.
    peaks: of train, evaluate and save, all included.
    process: what the process has before the run.  available: memory that this process can have.
    micro_batch: the largest that fits, 0 if none does.  levers: settings that would save the most.
    dtype: number format of base and computation.  why: it is that one, in words.
    checkpointing: activations are computed again in backward.
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
    dtype: str = ""
    why: str = ""
    checkpointing: bool = False

    @property
    def fits(self) -> bool:
        """Whether every phase fits into what the machine can give."""
        return self.peak <= self.available

    @property
    def peak(self) -> int:
        """The largest of the peaks."""
        return max(self.peaks.values())

    @property
    def needs(self) -> int:
        """What the run itself takes: the peak without what the process has before."""
        return self.peak - self.process

    def facts(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return asdict(self) | {"fits": self.fits}

    def __str__(self) -> str:
        trained = f"{self.trained:,} trained ({100 * self.trained / self.parameters:.2g} %)"
        in_step = ("gradients", "optimizer", "step", "allocator")
        in_words = {part: size(count) for part, count in self.parts.items()}
        largest = (
            f"train.micro_batch_size={self.micro_batch}" if self.micro_batch else "not even one row fits"
        )
        of_process = f"{size(self.process)} of it this process"
        verdict = "fits" if self.fits else "DOES NOT FIT"
        again = "   (activations are computed again in backward)" if self.checkpointing else ""
        lines = [
            f"base     {self.base}   {self.parameters:,} parameters   {in_words['weights']}",
            *([f"dtype    {self.dtype}: {self.why}"] if self.dtype else []),
            f"adapter  {trained} on {self.sites} sites   {in_words['adapter']}",
            "training " + ", ".join(f"{part} {in_words[part]}" for part in in_step) + again,
            "peak     " + ", ".join(f"{phase} {size(most)}" for phase, most in self.peaks.items()),
            f"memory   {size(self.available)} on {self.device}, {of_process}: {verdict}",
            f"largest  {largest}",
        ]
        lines += [f"lever    {x.change}   saves {size(x.saves)}   {x.costs}" for x in self.levers]
        return "\n".join(lines)


def plan(recipe: str | Path | dict[str, Any] | Recipe, overrides: Iterable[str] = ()) -> Plan:
    """Return the plan of a recipe. Reads the model's config and, for classes, the rows; no weights.

    Of a recipe with `stages`, it is the plan of the stage that needs the most memory.
    """
    overrides = list(overrides)
    chain = read_chain(recipe, overrides)
    if chain is not None:
        return max((plan(chain.before(name)) for name in chain.recipes), key=lambda one: one.needs)
    chosen = read(recipe, overrides)
    config = config_of(chosen)
    check_tokenizer(chosen, config)
    if chosen.adapter is not None:
        with unreal():
            sites = sketch(config, task=task_of(chosen, config)).sites
        chosen = of_adapter(chosen, adapter_files.read(Path(chosen.adapter), sites)[0], sites)
    chosen = fitting(chosen, config, positions_taken(chosen, config))
    train = chosen.train
    shape = Shape(
        rows=train.micro_batch_size,
        length=chosen.data.max_length,
        eval_rows=chosen.evaluate.batch_size,
        checkpointing=train.gradient_checkpointing is True,
        optimizer=train.optimizer,
        budget=int(train.paged_budget_mb * MIB),
        stage=stage_of(chosen),
    )
    methods, task = _methods(chosen), task_of(chosen, config)
    loading: dict[str, Any] = {"quant": chosen.quant, "group_size": chosen.group_size, "task": task}

    def plan_in(dtype: str) -> Plan:
        auto = train.gradient_checkpointing == "auto"
        return plan_model(config, methods, shape, dtype=DTYPES[dtype], **loading, may_recompute=auto)

    planned = settled(chosen.dtype, plan_in)
    name = chosen.model if isinstance(chosen.model, str) else f"fresh {config.model_type}"
    return replace(planned, base=name)


def plan_model(
    config: Any,
    methods: Sequence[Method],
    shape: Shape,
    *,
    quant: str = "none",
    group_size: int = 0,
    dtype: torch.dtype = torch.bfloat16,
    task: str | None = None,
    may_recompute: bool = False,
) -> Plan:
    """Return the plan of training `methods` on a base of this transformers config.

    quant, group_size, task: as for `graft.load`.  dtype: of the base's other weights and of activations.
    may_recompute: compute activations again in backward if the run fits only so.
    """
    loading = {"quant": quant, "group_size": group_size, "dtype": dtype, "task": task}
    available, device, process = memory()
    held = held_by(config, methods, shape.step().stage, shape.optimizer, shape.budget, loading)

    def cost(step: Step, training: bool = True) -> Cost:
        tensors, heap = peak(config, methods, step, training=training, uniform=held.uniform, **loading)
        return Cost(tensors, round(RETAINED * heap) if device == "cpu" else 0)

    # Logits exist for one chunk of positions at a time: with this many more rows, each costs the same.
    more_rows = max(shape.rows, -(-2 * CHUNK // shape.length))
    run = cost(shape.step())
    larger = cost(shape.step(shape.rows + more_rows))
    checkpointed = cost(replace(shape, checkpointing=True).step())
    evaluation = cost(replace(shape, checkpointing=False).step(shape.eval_rows), training=False)

    parts = held.parts | {"step": max(run.tensors, held.update), "allocator": run.holes}
    resident = process + sum(held.parts.values())
    between_steps = resident - held.parts["gradients"]
    peaks = {
        "train": resident + parts["step"] + parts["allocator"],
        "evaluate": between_steps + evaluation.tensors + evaluation.holes,
        "save": between_steps + held.parts["adapter"] + held.states,
    }
    per_row = max(1, (larger.tensors - run.tensors) // more_rows)  # without holes: they do not grow in a line
    free = available - resident - run.tensors - max(run.holes, larger.holes)
    recomputed = 0 if shape.checkpointing else run.tensors - checkpointed.tensors
    if may_recompute and recomputed > 0 and max(peaks.values()) > available:
        shape = replace(shape, checkpointing=True)
        return plan_model(config, methods, shape, quant=quant, group_size=group_size, dtype=dtype, task=task)
    return Plan(
        base=config.model_type,
        parameters=held.parameters,
        trained=held.trained,
        sites=held.sites,
        parts=parts,
        peaks=peaks,
        process=process,
        available=available,
        device=device,
        micro_batch=_largest(shape.rows, free // per_row, fits=peaks["train"] <= available),
        levers=_levers(_use(held, methods, shape, per_row, recomputed), least=peaks["train"] // 100),
        checkpointing=shape.checkpointing,
    )


def _largest(rows: int, more: int, *, fits: bool) -> int:
    """Return the rows of the largest micro-batch that fits.

    more: rows that would fit besides, or negative.
    """
    if fits:
        return rows + max(more, 0)
    return min(max(rows + more, 0), rows - 1)


def _use(held: Held, methods: Sequence[Method], shape: Shape, row: int, recomputed: int) -> Use:
    """Return the settings of a run and the bytes that each lever could move."""
    states = held.parts["optimizer"]
    return Use(
        rows=shape.rows,
        length=shape.length,
        rank=next((method.r for method in methods if hasattr(method, "r")), 0),
        row=row,
        recomputed=recomputed,
        states=states - min(states, shape.budget),
        packed=held.packed if all(method.quantisable for method in methods) else 0,
        trained=held.parts["adapter"] + held.parts["gradients"] + states,
    )


def _levers(use: Use, least: int) -> list[Lever]:
    """Return the three cheapest levers that save more than `least` bytes."""
    return [lever for lever in levers(use) if lever.saves > least][:3]


def count_methods(model: str) -> dict[str, int | str]:
    """Return what each method trains with its defaults on a base (path, hub id or "seedling").

    A count of parameters, or, in words, why the method cannot be attached.
    """
    counts: dict[str, int | str] = {}
    with unreal():
        base = sketch(read_config(model))
        for name in names():
            try:
                counts[name] = base.attach(name, find(name)()).count()
                base.detach(name)
            except GraftError as error:
                counts[name] = error.given
    return counts


def config_of(recipe: Recipe) -> Any:
    """Return the transformers config of a recipe's base; of a hub model only that file is fetched."""
    if isinstance(recipe.model, str):
        return read_config(recipe.model)
    values = dict(recipe.model.config)
    tokenizer = recipe.model.tokenizer
    if isinstance(tokenizer, NewTokenizer):
        vocabulary = tokenizer.vocab_size
    else:
        vocabulary = len(Tokenizer.from_file(str(Path(tokenizer) / "tokenizer.json")).get_vocab())
    return AutoConfig.for_model(values.pop("model_type", "llama"), **{"vocab_size": vocabulary} | values)


def _methods(recipe: Recipe) -> list[Method]:
    """Return the recipe's methods; rows are read only if their classes shape a head."""
    stage = stage_of(recipe)
    if not stage.labelled:
        return methods_of(recipe)
    rows = load_rows(located(recipe.data), stage.accepts()).train
    return methods_of(recipe, label_names(rows), tagged=rows[0].kind == "tags")
