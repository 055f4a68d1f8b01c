"""What every command opens: the folder of a run, an adapter or a model, a hub id or the seedling, ready to answer.

Also the pieces of a recipe as objects: its base, its methods, its rows with the embedded data resolved.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from transformers.utils.logging import disable_progress_bar

from graft import seedling, storage
from graft.base.base import Base
from graft.core.method import Method
from graft.core.positions import first_position
from graft.core.registry import classifying, described, find
from graft.data import DataReport, Row, load_rows, prepare
from graft.data.encode import Encoder
from graft.data.feed import Feed
from graft.data.layouts import recognise
from graft.data.read import records
from graft.data.report import sample
from graft.data.rows import Reject
from graft.data.train_tokenizer import train_bpe
from graft.errors import UsageError
from graft.evaluate import Held, Table, answers, before_after, cases, evaluate
from graft.models.files import find as find_model
from graft.models.files import read_config
from graft.models.fresh import fresh
from graft.models.load import DTYPES, load
from graft.models.tokenizer import tokenizer_in
from graft.quant import Scheme
from graft.quant.gptq import quantise_calibrated
from graft.quant.hf import GraftQuantConfig, packed_by
from graft.recipe import Data, NewTokenizer, Recipe, read
from graft.shipping.hf import refuse_occupied, replaced

TASKS = {"causal": None, "masked": "masked", "span": None}


@dataclass
class Opened:
    """base with its adapters; adapter: the name that answers, None for the bare base.  recipe, folder: of a run."""

    base: Base
    adapter: str | None = None
    recipe: Recipe | None = None
    folder: Path | None = None
    by_template: bool = False

    def ask(self, prompts: Sequence[str], **how: Any) -> list[str]:
        """Answers to plain texts, asked in the way that the model was trained with."""
        return reply(self.base, [asked(p, self.by_template) for p in prompts], self.adapter, **how)


def open_model(name: str, adapters: Sequence[str] = (), quant: str | None = None) -> Opened:
    """A run's folder (with its adapter), an adapter's folder (with its base), or a model.

    adapters: folders, or NAME=FOLDER; the last one answers.  quant: how to store the base; a run has its own.
    """
    folder = Path(name)
    if (folder / "recipe.yaml").exists() and not (folder / "config.json").exists():
        opened = _open_run(folder, quant)
    elif (folder / "adapter_config.json").exists():
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        base = config.get("base_model_name_or_path")
        if not base:
            raise UsageError(f"{name} names no base", "an adapter that does", f"give the base, and --adapter {name}")
        opened = Opened(load(str(base), quant=quant))
        adapters = [*adapters, name]
    else:
        opened = Opened(load(name, quant=quant))
    for word in adapters:
        label, _, path = word.rpartition("=")
        path = str(Path(path) / "adapter") if (Path(path) / "adapter").is_dir() else path  # a run's folder
        label = label or _label(Path(path))
        opened.base.load_adapter(path, label)
        opened.adapter = label
    if opened.recipe is None:
        opened.by_template = bool(getattr(opened.base.tokenizer, "chat_template", None))
    return opened


def _label(folder: Path) -> str:
    """A name for an adapter: its folder's, or its run's."""
    folder = folder.resolve()
    return folder.parent.name if folder.name == "adapter" else folder.name


def _open_run(folder: Path, quant: str | None) -> Opened:
    recipe = read(folder)
    if not (folder / "adapter" / "adapter_config.json").exists():
        raise UsageError(f"{folder} has no adapter yet", "a run that has finished", f"go on with: graft train {folder}")
    report = json.loads((folder / "data_report.json").read_text(encoding="utf-8"))
    by_template = bool(report.get("asks_by_template"))
    if recipe.fresh:
        return Opened(load(folder / "model", quant=quant, dtype=recipe.dtype), None, recipe, folder, by_template)
    base = load_base(recipe, quant)
    base.load_adapter(folder / "adapter", folder.resolve().name)
    if (folder / "adapter" / "tokenizer_config.json").exists():
        base.tokenizer = tokenizer_in(folder / "adapter")  # with the template of training
    return Opened(base, folder.resolve().name, recipe, folder, by_template)


def load_base(recipe: Recipe, quant: str | None = None) -> Base:
    """The base of a recipe: loaded, or with random weights and a tokenizer that the run's folder keeps once trained."""
    task = TASKS[recipe.objective]
    words = any(find(settings["name"]).word_head for settings in recipe.methods)
    if isinstance(recipe.model, str):
        stored = {"quant": quant or recipe.quant, "group_size": recipe.group_size, "dtype": recipe.dtype}
        base = load(recipe.model, **stored, task=task)
        if recipe.stage == "classify" and base.family == "masked" and not words:  # its word head is of no use then
            base = load(recipe.model, **stored, task="encoder")
        return base
    wanted, folder = recipe.model.tokenizer, Path(recipe.output) / "tokenizer"
    if isinstance(wanted, NewTokenizer) and not folder.exists():
        rows = load_rows(seedling.located(recipe.data), stage=recipe.stage, seed=recipe.train.seed).train
        texts = (text for row in rows for text in row.texts())
        made = train_bpe(texts, wanted.vocab_size, max_length=recipe.data.max_length)
        storage.commit(folder, made.save_pretrained)
    tokenizer = tokenizer_in(folder if isinstance(wanted, NewTokenizer) else wanted)
    return fresh(recipe.model.config, tokenizer, dtype=recipe.dtype, seed=recipe.train.seed, task=task)


def base_as_stored(name: str) -> Base:
    """A base in the dtype of its file, where rounding must not look like a change."""
    stored = read_config(name).dtype
    return load(name, "none", dtype=next((word for word, dtype in DTYPES.items() if dtype == stored), "fp32"))


def methods_of(recipe: Recipe, labels: Sequence[str] = (), *, tagged: bool = False) -> list[Method]:
    """The recipe's methods as objects; a classifier gets the classes of its rows, and a head where none is named.

    tagged: the rows have a class for every word.
    """
    methods = [described(settings) for settings in recipe.methods]
    return classifying(methods, labels, tagged=tagged) if recipe.stage == "classify" else methods


def asks_by_template(data: Data, stage: str) -> bool:
    """Whether rows are conversations, asked through the chat template, or plain prompts and texts."""
    if stage != "sft" or data.template is not None:
        return stage == "sft"
    rows = (recognise(r, stage, data.format, data.columns) for r in records(data.train) if not isinstance(r, Reject))
    return any(row.kind == "chat" for row in islice((row for row in rows if isinstance(row, Row)), 1))


def _or_the_runs(recipe: Recipe) -> Recipe:
    """The recipe, or that of the run which `data.train` names."""
    folder = Path(str(recipe.data.train))
    return read(folder) if (folder / "recipe.yaml").exists() else recipe


def look(recipe: Recipe, rows: int) -> DataReport:
    """The data report of a recipe with its first rows as the model sees them. `data.train` may be a run's folder."""
    recipe = _or_the_runs(recipe)
    tokenizer = (
        tokenizer_in(find_model(recipe.model))
        if isinstance(recipe.model, str)
        else tokenizer_in(Path(recipe.output) / "tokenizer")
    )
    data = seedling.located(recipe.data)
    prepared = prepare(data, tokenizer, stage=recipe.stage, objective=recipe.objective, seed=recipe.train.seed)
    prepared.report.samples = [
        sample(prepared.train[i], tokenizer, prepared.labels) for i in range(min(rows, len(prepared.train)))
    ]
    return prepared.report


def asked(text: str, by_template: bool) -> str | list[dict[str, str]]:
    """A prompt for `Base.generate`: a conversation of one turn, or the text as it is."""
    return [{"role": "user", "content": text}] if by_template else text


def reply(base: Base, prompts: Sequence[Any], adapter: str | None, **how: Any) -> list[str]:
    """What the model writes to each prompt; of an adapter with a task head, what that tells of each text.

    prompts: as `asked` gives them.  how: keywords of `Base.generate`.
    """
    if adapter is None or base.adapters[adapter].head is None:
        return base.generate(prompts, adapters=[adapter] * len(prompts), **how)
    texts = [prompt if isinstance(prompt, str) else prompt[-1]["content"] for prompt in prompts]
    return answers(base, texts, [adapter] * len(texts))


def material(opened: Opened, recipe: Recipe, rows: Sequence[Row]) -> Held:
    """Rows as evaluation takes them: encoded for losses and classes, and as prompts for written answers."""
    base = opened.base
    head = base.adapters[opened.adapter].head if opened.adapter else None
    encoder = Encoder(
        base.tokenizer,
        stage=recipe.stage,
        objective=recipe.objective,
        family=base.family,
        max_length=recipe.data.max_length,
        template=recipe.data.template,
        labels=head.labels if head is not None else (),
    )
    size = recipe.evaluate.batch_size
    examples = encoder(rows).examples
    if opened.by_template:
        rows = [_as_chat(row) for row in rows]
    return Held(
        feed(base, recipe, examples, size, size),
        rows,
        {"max_new_tokens": recipe.evaluate.max_new_tokens, "batch_size": size},
    )


def feed(base: Base, recipe: Recipe, examples: Sequence[Any], batch_size: int, micro_batch_size: int) -> Feed:
    """Examples as this base and recipe want their batches; packed where the model allows it."""
    config, length = base.model.config, recipe.data.max_length
    return Feed(
        examples,
        base.tokenizer,
        batch_size=batch_size,
        micro_batch_size=micro_batch_size,
        max_length=length,
        pack=recipe.data.pack and base.unpackable(length) is None,
        seed=recipe.train.seed,
        stage=recipe.stage,
        objective=recipe.objective,
        family=base.family,
        first_position=first_position(config),
        decoder_start=getattr(config, "decoder_start_token_id", None),
    )


def _as_chat(row: Row) -> Row:
    if row.kind != "pair":
        return row
    turns = [{"role": "user", "content": row.value[0]}, {"role": "assistant", "content": row.value[1]}]
    return Row(row.source, "chat", turns, row.tools)


def held_rows(recipe: Recipe) -> list[Row]:
    """The rows that a recipe is judged on: its test rows, else its held-out ones; at most evaluate.limit."""
    loaded = load_rows(seedling.located(recipe.data), stage=recipe.stage, seed=recipe.train.seed)
    return (loaded.test or loaded.eval or [])[: recipe.evaluate.limit]


def score(opened: Opened, recipe: Recipe, data: str | None = None) -> Table:
    """The recipe's metrics without and with the adapter, on its held rows or those of `data`; no rows, no columns."""
    if data is None:
        rows = held_rows(recipe)
    else:
        other = recipe.data.model_copy(update={"train": data, "eval": None, "test": None})
        rows = load_rows(seedling.located(other), stage=recipe.stage).train[: recipe.evaluate.limit]
    if not rows:
        return Table({}, [])
    held, metrics = material(opened, recipe, rows), recipe.evaluate.metrics
    if opened.adapter is None:
        return Table({"model": evaluate(opened.base, held, metrics)}, [])
    return before_after(opened.base, held, metrics, adapter=opened.adapter)


def judged_by(opened: Opened, stage: str | None, metrics: Sequence[str], limit: int | None) -> Recipe:
    """The recipe to score by: the run's own with these changes, or one for a model that is no run."""
    changes = [f"evaluate.metrics={json.dumps(list(metrics))}"] if metrics else []
    changes += [f"evaluate.limit={limit}"] if limit else []
    changes += [f"stage={stage}"] if stage else []
    if opened.recipe is not None:
        return read(opened.recipe, changes)
    objective = (
        {"masked": "masked", "seq2seq": "span"}.get(opened.base.family, "causal") if stage == "pretrain" else "causal"
    )
    return read({"model": opened.base.name, "objective": objective}, changes)


def scores_of(name: str) -> dict[str, float]:
    """The scores that a run's folder holds, of the trained model; empty for anything else."""
    path = Path(name) / "evaluation.json"
    columns = json.loads(path.read_text(encoding="utf-8"))["columns"] if path.exists() else {}
    return dict(list(columns.values())[-1]) if columns else {}


def prompts_of(opened: Opened, limit: int) -> list[str]:
    """Prompts to compare by: the recipe's samples, else what its held-out rows ask."""
    recipe = opened.recipe
    if recipe is None:
        raise UsageError("there are no prompts", "--prompt TEXT or --prompts FILE", "give some, or name a run first")
    if recipe.train.samples:
        return recipe.train.samples[:limit]
    rows = held_rows(recipe)
    if recipe.stage == "classify":
        return [row.value[0] if row.kind == "label" else " ".join(row.value[0]) for row in rows[:limit]]
    found = [case.prompt for case in cases(rows)]
    return [p if isinstance(p, str) else str(p[-1]["content"]) for p in found[:limit]]


def quantise(
    name: str, folder: Path, quant: str, *, group_size: int = 0, calibrate: Recipe | None = None, force: bool = False,
    tell: Callable[[int, int], None] | None = None,
) -> Path:  # fmt: skip
    """Write a model with its linear weights packed; our loader and transformers (with graft imported) read it.

    calibrate: its rows choose the codes, by GPTQ.  tell: called with the blocks done and their number.
    """
    refuse_occupied(folder, force=force)
    scheme = Scheme(quant, group_size)
    base = load(name, quant="none" if calibrate else quant, group_size=group_size)
    if calibrate:
        quantise_calibrated(base.model, _calibration(base, calibrate), scheme, tell)
        packed_by(base.model, GraftQuantConfig(scheme.name, scheme.block))
    disable_progress_bar()
    with replaced(folder, force=force) as partial:
        base.model.save_pretrained(partial)
        if base.tokenizer is not None:
            base.tokenizer.save_pretrained(partial)
    return folder


def _calibration(base: Base, recipe: Recipe) -> list[dict[str, Any]]:
    """The first `data.limit` rows as this model sees them in training, one a forward, so that none is padded."""
    limit, recipe = recipe.data.limit, _or_the_runs(recipe)
    few = recipe.data.model_copy(update={"pack": False, "eval": None, "limit": limit})
    recipe = recipe.model_copy(update={"data": few})
    kind = {"stage": recipe.stage, "objective": recipe.objective, "family": base.family}
    rows = prepare(seedling.located(few), base.tokenizer, **kind).train
    own = {} if base.family == "masked" else {"use_cache": False}
    batches = feed(base, recipe, rows, 1, 1)
    return [batches.step(0, index)[0].to(base.device).inputs | own for index in range(batches.steps_per_epoch)]
