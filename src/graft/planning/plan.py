"""Plan a recipe, or a base and its methods: trace one step of it on a sketch, and reckon the rest.

What a plan holds is in `estimate`, what it is reckoned from in `costs`. Facts that were traced before are
read from the cache (`kept`).
"""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers.models.auto.configuration_auto import AutoConfig

from graft.base import adapter_files
from graft.core.by_name import answered
from graft.core.method import Method
from graft.core.registry import find, names
from graft.data import load_rows
from graft.data.preparation import label_names
from graft.data.rows_given import lent
from graft.errors import GraftError, Notice, notice
from graft.kernels import measure, native
from graft.models.dtype import AUTO
from graft.models.files import read_config
from graft.models.load import DTYPES
from graft.planning import kept
from graft.planning.costs import Facts
from graft.planning.dtype import settled
from graft.planning.estimate import LIBRARIES, Plan, Room, estimate
from graft.planning.fit import check_tokenizer, fitting, of_adapter, positions_taken
from graft.planning.machine import memory
from graft.planning.seconds import Rates
from graft.planning.sketch import sketch, unreal
from graft.planning.trace import Shape, beside, steps_of, trace
from graft.recipe import NewTokenizer, Recipe, read
from graft.recipe.chain import read_chain
from graft.seedling import located
from graft.sizes import MIB
from graft.stages.stage import methods_of, stage_of, task_of

__all__ = ["Plan", "Shape", "config_of", "count_methods", "plan", "plan_model"]


@answered
def plan(recipe: str | Path | dict[str, Any] | Recipe, overrides: Iterable[str] = ()) -> Plan:
    """Return the plan of a recipe. Reads the model's config and, for classes, the rows; no weights.

    Of a recipe with `stages`, it is the plan of the stage that needs the most memory. Its data may be rows in
    memory, if they can be read more than once.
    """
    overrides = list(overrides)
    if isinstance(recipe, dict):
        with lent(recipe) as plain:
            return _planned(plain, overrides)
    return _planned(recipe, overrides)


def _planned(recipe: str | Path | dict[str, Any] | Recipe, overrides: list[str]) -> Plan:
    chain = read_chain(recipe, overrides)
    if chain is not None:
        return max((plan(chain.before(name)) for name in chain.recipes), key=lambda one: one.needs)
    chosen = read(recipe, overrides)
    known = kept.load(chosen)
    planned = None if known is None else kept.again(known, room_here())
    if known is not None and planned is not None:
        for text in known.told:
            notice(text)
        return planned
    return _traced(chosen)


def _traced(given: Recipe) -> Plan:
    """Return the plan of a recipe, and keep the facts that it is reckoned from."""
    room, auto = room_here(), given.train.gradient_checkpointing == "auto"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", Notice)
        config = config_of(given)
        chosen = _completed(given, config)
    told = [str(warning.message) for warning in caught if issubclass(warning.category, Notice)]
    for text in told:
        notice(text)
    name = chosen.model if isinstance(chosen.model, str) else f"fresh {config.model_type}"
    run = run_of(chosen, config)
    traced: dict[str, Facts] = {}

    def plan_in(dtype: str) -> Plan:
        traced[dtype] = replace(run.facts(DTYPES[dtype]), base=name)
        return run.plan(traced[dtype], room, dtype, may_recompute=auto, traced=traced)

    planned = settled(given.dtype, plan_in)
    rates = {word: found for word in traced if (found := _rates(word))}
    free = given.dtype == AUTO and planned.dtype == "fp32"
    kept.save(given, kept.Kept(planned.dtype, planned.why, free, room.process, auto, traced, rates, told))
    return planned


def _completed(recipe: Recipe, config: Any) -> Recipe:
    """Return a recipe with the methods of the adapter that it goes on from, and rows that the model takes."""
    check_tokenizer(recipe, config)
    if recipe.adapter is not None:
        with unreal():
            sites = sketch(config, task=task_of(recipe, config)).sites
        recipe = of_adapter(recipe, adapter_files.read(Path(recipe.adapter), sites)[0], sites)
    return fitting(recipe, config, positions_taken(recipe, config))


def room_here() -> Room:
    """Return the memory of this machine; on the CPU the process will have libraries that it has not yet."""
    available, device, process = memory()
    return Room(available, device, process + (LIBRARIES if device == "cpu" else 0))


def _rates(dtype: str) -> Rates | None:
    """Return how fast this machine was measured to be in a number format; None if it was not."""
    profile = None if torch.cuda.is_available() else measure.kept()
    if profile is None or dtype not in profile.products:
        return None
    products = profile.products
    # Where torch does not multiply a format faster, the kernels do it in fp32.
    own = products[dtype] if native.by_torch(DTYPES[dtype]) else products["fp32"]
    return Rates(own, products["fp32"], profile.decoding, profile.reading)


def shape_of(recipe: Recipe) -> Shape:
    """Return the shape of a recipe's steps."""
    train, stage = recipe.train, stage_of(recipe)
    return Shape(
        rows=train.micro_batch_size,
        length=recipe.data.max_length,
        eval_rows=recipe.evaluate.batch_size,
        checkpointing=train.gradient_checkpointing is True,
        optimizer=train.optimizer,
        budget=int(train.paged_budget_mb * MIB),
        stage=stage,
        step_rows=train.batch_size,
        steps=train.max_steps or steps_of(recipe, stage),
        beside=beside(recipe, stage),
        writes=stage.online or bool(train.samples),
    )


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
    run = Run(config, methods, shape, quant=quant, group_size=group_size, task=task)
    word = next(word for word, known in DTYPES.items() if known == dtype)
    return run.plan(run.facts(dtype), room_here(), word, may_recompute=may_recompute)


@dataclass(frozen=True)
class Run:
    """What a run consists of, without its number format.  quant, group_size, task: as for `graft.load`."""

    config: Any
    methods: Sequence[Method]
    shape: Shape
    quant: str = "none"
    group_size: int = 0
    task: str | None = None

    def facts(self, dtype: torch.dtype, *, brief: bool = False) -> Facts:
        """Return what its steps take, by running a few of them on sketches.  brief: see `trace`."""
        loading = {"quant": self.quant, "group_size": self.group_size, "task": self.task, "dtype": dtype}
        return trace(self.config, self.methods, self.shape, loading, brief=brief)

    def plan(
        self,
        facts: Facts,
        room: Room,
        dtype: str,
        *,
        may_recompute: bool,
        traced: dict[str, Facts] | None = None,
    ) -> Plan:
        """Return the plan of these facts; of those with checkpointing if it fits only so, and may be used.

        traced: receives the facts with checkpointing.
        """
        planned = estimate(facts, room, _rates(dtype))
        if not may_recompute or planned.fits or facts.recomputed.tensors >= facts.run.tensors:
            return planned
        again = replace(self, shape=replace(self.shape, checkpointing=True))
        found = replace(again.facts(DTYPES[dtype]), base=facts.base)
        if traced is not None:
            traced[kept.recomputed(dtype)] = found
        return estimate(found, room, _rates(dtype))


def run_of(recipe: Recipe, config: Any) -> Run:
    """Return what a run of this recipe on a base of this config consists of."""
    return Run(
        config,
        _methods(recipe),
        shape_of(recipe),
        quant=recipe.quant,
        group_size=recipe.group_size,
        task=task_of(recipe, config),
    )


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
