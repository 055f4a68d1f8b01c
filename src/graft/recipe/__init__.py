"""The typed tree of every setting of a run: read from YAML, changed by `key=value`, checked whole, written back.

The comment behind a field is its help everywhere: in the resolved recipe.yaml, on the command line and in the docs. Every key has a
default. Unknown keys, wrong values and contradictions are collected and reported together, with lines and nearest names; nothing here
imports torch, so an error costs a fraction of a second.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError

from graft.cards import settings
from graft.errors import UsageError, nearest
from graft.recipe.methods import method_help, refused, resolved
from graft.recipe.text import emit, read_text
from graft.recipe.words import SYNONYMS, canonical

Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Name = Annotated[str, Field(min_length=1)]


class Section(BaseModel):
    """A group of keys. Strict: a number in quotes is not a number, an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", strict=True, validate_default=False, allow_inf_nan=False)


class NewTokenizer(Section):
    train: Literal["bpe"] = "bpe"            # kind of tokenizer to train on data.train
    vocab_size: Count = 2048                 # its number of tokens


class Fresh(Section):
    config: dict[str, Any]                   # keys of the transformers configuration; model_type is one of them
    tokenizer: Annotated[                    # a tokenizer folder, or {train: bpe, vocab_size: 2048}
        Annotated[Name, Tag("text")] | Annotated[NewTokenizer, Tag("keys")],
        Discriminator(lambda value: "text" if isinstance(value, str) else "keys"),
    ]


class Data(Section):
    train: Name | list[Name] | None = None   # rows to learn from: a file, a folder, several of them, or a hub name
    eval: Share | Name | None = 0.05         # held-out rows: a share of train, a file, or null
    test: Name | None = None                 # rows for the evaluation after training; eval rows when null
    format: Name = "auto"                    # layout of a row; auto recognises text, messages, prompt/completion, alpaca, sharegpt
    max_length: Count = 1024                 # tokens per row; longer rows are cut, and counted in the data report
    pack: bool = True                        # several rows in one sequence, never seeing each other
    bad_rows: Literal["strict", "skip"] = "strict"   # strict: a defective row stops the run; skip: it is listed and left out
    template: Name | None = None             # chat template: a file or a builtin name; null: the tokenizer's own
    limit: Count | None = None               # use only so many rows of train
    columns: dict[str, str] = {}             # names of columns that are not recognised, for example {prompt: question}


class Train(Section):
    epochs: Positive = 1.0                   # passes over the data
    max_steps: Count | None = None           # stop after so many optimiser steps instead
    batch_size: Count = 16                   # rows per optimiser step
    micro_batch_size: Count = 2              # rows per forward; changes memory and speed, never the step
    lr: Positive = 2e-4                      # peak learning rate
    schedule: Literal["linear", "cosine", "constant"] = "linear"   # how the learning rate falls after the warm-up
    warmup: Share = 0.03                     # share of the steps in which the learning rate rises
    weight_decay: NotNegative = 0.0          # decoupled weight decay
    betas: Annotated[list[Share], Field(min_length=2, max_length=2)] = [0.9, 0.999]   # AdamW's averages of gradient and square
    eps: Positive = 1e-8                     # AdamW's denominator floor
    clip: NotNegative = 1.0                  # largest gradient norm; 0 does not clip
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"] = "adamw"   # 8bit: states in bytes; paged: off the device
    paged_budget_mb: Whole = 0               # optimizer state kept on the device by the paged optimizers
    neftune_alpha: NotNegative = 0.0         # noise on the embeddings of training rows; 0 is none
    gradient_checkpointing: bool = False     # compute activations again in backward: less memory, about a third more time
    dropout: bool = False                    # the base's own dropout during training
    compile: bool = False                    # torch.compile the base
    seed: Whole = 0                          # of the adapter's birth, the order of rows and every random choice
    save_every: Count = 100                  # steps between checkpoints
    keep: Count = 2                          # checkpoints kept
    log_every: Count = 10                    # steps between printed lines
    eval_every: Whole = 0                    # steps between evaluations; 0: after every epoch
    patience: Whole = 0                      # stop after so many evaluations without a better loss; 0: never
    on_nan: Literal["stop", "skip"] = "stop"   # a step whose loss or gradient is not finite
    samples: list[str] = []                  # prompts answered at every evaluation, kept in samples.md
    sample_tokens: Count = 64                # length of these answers


class Evaluate(Section):
    metrics: list[Name] = ["perplexity"]     # builtin names, or module:function of yours
    max_new_tokens: Count = 128              # length of generated answers
    limit: Count | None = None               # rows to evaluate on
    batch_size: Count = 8                    # rows per forward


class Recipe(Section):
    model: Annotated[                        # a folder, a hub id, seedling, or {config: {...}, tokenizer: ...} for a fresh model
        Annotated[Name, Tag("text")] | Annotated[Fresh, Tag("keys")],
        Discriminator(lambda value: "text" if isinstance(value, str) else "keys"),
    ] = "seedling"
    quant: Literal["none", "nf4", "fp4", "int8"] = "none"   # how the frozen base is stored
    dtype: Literal["bf16", "fp32"] = "bf16"  # number format of the base and of the computation
    stage: Literal["pretrain", "sft", "classify"] = "sft"   # what a row is for
    objective: Literal["causal", "masked", "span"] = "causal"   # of pretrain: next token, masked tokens, masked spans
    method: dict[str, Any] | list[dict[str, Any]] = {"name": "lora"}   # what is trained; `graft methods` lists them; qlora is a preset
    adapter: Name | None = None              # a saved adapter to go on from, instead of a new one
    data: Data = Data()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    output: Name = "runs/latest"             # the run's folder

    @property
    def methods(self) -> list[dict[str, Any]]:
        """The methods in order, each {name, settings...} with every setting resolved."""
        return self.method if isinstance(self.method, list) else [self.method]

    @property
    def fresh(self) -> bool:
        """Whether the model starts from random weights."""
        return isinstance(self.model, Fresh)

    def yaml(self) -> str:
        """The whole recipe as YAML, each key with its help; reading it back gives an equal recipe."""
        return emit(self.model_dump(), explain() | ({} if isinstance(self.method, list) else method_help(self.method)))


def read(source: str | Path | dict[str, Any] | Recipe, overrides: Iterable[str] = (), notices: list[str] | None = None) -> Recipe:
    """A recipe from a YAML file, a run's folder, a dict of settings or a Recipe, changed by `key=value` words.

    notices: receives how words of other trainers and presets were understood.
    Raises UsageError that lists every unknown key, wrong value and contradiction at once.
    """
    overrides = list(overrides)
    if isinstance(source, Recipe):
        if not overrides:
            return source
        source = source.model_dump()
    if isinstance(source, dict):
        raw, where, lines = source, "the recipe", {}
    else:
        path = Path(source) / "recipe.yaml" if Path(source).is_dir() else Path(source)
        text = read_text(path)
        raw, where, lines = text.settings, str(path), text.lines
        if Path(source).is_dir():
            raw["output"] = str(source)   # a run's folder is where it lies now
        raw.setdefault("output", f"runs/{path.stem}")
    heard: list[str] = [] if notices is None else notices
    raw, problems = canonical(raw, overrides, heard)
    problems |= resolved(raw, heard)
    try:
        recipe = Recipe.model_validate(raw)
        problems |= _contradictions(recipe)
    except ValidationError as error:
        problems |= dict(_problem(raw, detail) for detail in reversed(error.errors(include_url=False)))
    if problems:
        raise _refusal(where, problems, lines)
    return recipe


def explain() -> dict[str, str]:
    """Every dotted key with its line of help, in the order of the file."""
    here, found = Path(__file__), {}
    for name, setting in settings(here, "Recipe").items():
        kind = {"data": "Data", "train": "Train", "evaluate": "Evaluate"}.get(name)
        if kind:
            found |= {f"{name}.{key}": inner.help for key, inner in settings(here, kind).items()}
        elif not name.startswith("_"):
            found[name] = setting.help
    return found


def _problem(raw: dict[str, Any], detail: Any) -> tuple[str, str]:
    """One pydantic error as (dotted key, what is wrong)."""
    given, path = raw, []
    for part in detail["loc"]:
        # Other parts name a branch of a union, which the reader did not write.
        inside = part in given if isinstance(given, dict) else isinstance(given, list) and isinstance(part, int) and part < len(given)
        if inside:
            given = given[part]
        if inside or detail["type"] == "missing" and part == detail["loc"][-1]:
            path.append(str(part))
    key = ".".join(path)
    if detail["type"] == "extra_forbidden":
        return key, f"is no key; nearest: {', '.join(_nearest(key))}"
    if detail["type"] == "missing":
        return key, "is missing"
    message = detail["msg"].removeprefix("Input ").removeprefix("Value error, ")
    shown = repr(given) if len(repr(given)) <= 40 else type(given).__name__
    return key, f"= {shown} {message}"


def _nearest(key: str) -> list[str]:
    """Canonical keys that look like `key`: by their last part, or by a word of another trainer."""
    leaves: dict[str, str] = {word: target for word, (target, _) in SYNONYMS.items()}
    for known in [*explain(), "data", "train", "evaluate"]:
        leaves[known.rpartition(".")[2]] = known
    section, _, leaf = key.rpartition(".")
    siblings = [word for word, target in leaves.items() if section and target.startswith(f"{section}.")]
    found = nearest(leaf, siblings or leaves, 2) if section else nearest(leaf, leaves, 2)
    return list(dict.fromkeys(leaves[word] for word in found))


def _contradictions(recipe: Recipe) -> dict[str, str]:
    """Pairs of settings that cannot both be meant."""
    train, found = recipe.train, {}
    if recipe.objective != "causal" and recipe.stage != "pretrain":
        found["objective"] = f"= {recipe.objective} belongs to stage: pretrain, and the stage is {recipe.stage}"
    if recipe.fresh and recipe.quant != "none":
        found["quant"] = f"= {recipe.quant} stores pretrained weights; a fresh model is trained whole, with quant: none"
    if recipe.fresh and [method["name"] for method in recipe.methods] != ["full"]:
        found["method"] = "must be full for a fresh model: beside random weights nothing can be learnt"
    if train.batch_size % train.micro_batch_size:
        found["train.micro_batch_size"] = f"= {train.micro_batch_size} does not divide train.batch_size = {train.batch_size}"
    if train.paged_budget_mb and not train.optimizer.startswith("paged"):
        found["train.paged_budget_mb"] = f"has no effect with train.optimizer = {train.optimizer}; choose paged_{train.optimizer}"
    if train.patience and not recipe.data.eval:
        found["train.patience"] = "needs held-out rows: set data.eval"
    return found | refused(recipe.methods, recipe.quant)


def _refusal(where: str, problems: dict[str, str], lines: dict[str, int]) -> UsageError:
    keys = sorted(problems, key=lambda key: lines.get(key, 10**9))
    rows = [f"line {lines[key]}: {key}" if key in lines else key for key in keys]
    width = max(map(len, rows))
    listed = "\n".join(f"  {row:<{width}}  {problems[key]}" for row, key in zip(rows, keys, strict=True))
    count = "1 setting" if len(problems) == 1 else f"{len(problems)} settings"
    return UsageError(
        f"{where} has {count} that cannot be used\n{listed}",
        "known keys with values of their kind",
        "correct what is listed; `graft train --keys` shows every key with its help",
    )
