"""Every setting of a run as a typed tree.

The comment at a field is its help everywhere: in the resolved recipe.yaml, on the command line and in the
docs.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag

from graft.core.cards import settings
from graft.recipe.methods import method_help
from graft.recipe.stages import stage_help
from graft.recipe.text import emit
from graft.recipe.trackers import as_list

Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Name = Annotated[str, Field(min_length=1)]
Betas = Annotated[list[Share], Field(min_length=2, max_length=2)]
Methods = dict[str, Any] | list[dict[str, Any]]
Trackers = Annotated[list[Name], BeforeValidator(as_list)]
Stages = Name | dict[str, Any]
Schedule = Literal["linear", "cosine", "constant"]
BadRows = Literal["strict", "skip"]
Quant = Literal["none", "nf4", "fp4", "int8", "int4", "int3", "int2", "int8g"]
Optimizer = Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"]


class Section(BaseModel):
    """A group of keys. Strict: a number in quotes is not a number, an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", strict=True, validate_default=False, allow_inf_nan=False)


class NewTokenizer(Section):
    train: Literal["bpe"] = "bpe"  # kind of tokenizer to train on data.train
    vocab_size: Count = 2048  # its number of tokens


def _path_or_keys(value: Any) -> str:
    """Return the branch of a union that a value means: only that is tried, so that an error is about it."""
    return "path" if isinstance(value, str) else "keys"


_by_kind = Discriminator(_path_or_keys)
TokenizerSource = Annotated[Annotated[Name, Tag("path")] | Annotated[NewTokenizer, Tag("keys")], _by_kind]


class Fresh(Section):
    config: dict[str, Any]  # keys of the transformers configuration; model_type is one of them
    tokenizer: TokenizerSource  # a tokenizer folder, or {train: bpe, vocab_size: 2048}


ModelSource = Annotated[Annotated[Name, Tag("path")] | Annotated[Fresh, Tag("keys")], _by_kind]


class Data(Section):
    # rows to learn from: a file, a folder, several of them, or a hub name
    train: Name | list[Name] | None = None
    # held-out rows: a share of train (of a folder, its validation files), a file, or null
    eval: Share | Name | None = 0.05
    test: Name | None = None  # rows for the evaluation after training; eval rows when null
    # layout of a row; auto recognises text, messages, prompt/completion, alpaca, sharegpt, tags, preferences
    format: Name = "auto"
    max_length: Count = 1024  # tokens per row; longer rows are cut, and counted in the data report
    pack: bool = True  # several rows in one sequence, never seeing each other; steps stay the same
    bad_rows: BadRows = "strict"  # strict: a defective row stops the run; skip: it is listed and left out
    template: Name | None = None  # chat template: a file or a builtin name; null: the tokenizer's own
    # read control tokens in texts, prompts and completions as tokens; rows that the template wrote always are
    control_tokens: bool = False
    limit: Count | None = None  # use only so many rows of train: a random sample, of classes in proportion
    seed: Whole = 0  # of the held-out share and of the samples that limit and evaluate.limit take
    # names of tags or classes that are written as numbers, in their order: [O, B-PER, I-PER]
    tag_names: list[Name] = []
    columns: dict[str, str] = {}  # names of columns that are not recognised, for example {prompt: question}


class Train(Section):
    epochs: Positive = 1.0  # passes over the data
    max_steps: Count | None = None  # stop after so many optimiser steps instead
    batch_size: Count = 16  # rows per optimiser step
    micro_batch_size: Count = 2  # rows per forward; changes memory and speed, never the step
    lr: Positive = 2e-4  # peak learning rate
    schedule: Schedule = "linear"  # of the learning rate after the warm-up: linear, cosine, constant
    warmup: Share = 0.03  # share of the steps in which the learning rate rises
    weight_decay: NotNegative = 0.0  # decoupled weight decay
    betas: Betas = [0.9, 0.999]  # AdamW's averages of gradient and square
    eps: Positive = 1e-8  # AdamW's denominator floor
    clip: NotNegative = 1.0  # largest gradient norm; 0 does not clip
    # adamw, adamw_8bit, paged_adamw, paged_adamw_8bit; paged: states off the device
    optimizer: Optimizer = "adamw"
    paged_budget_mb: Whole = 0  # optimizer state kept on the device by the paged optimizers
    neftune_alpha: NotNegative = 0.0  # noise on the embeddings of training rows; 0 is none
    # compute activations again in backward: less memory, about a third more time; auto: if memory is short
    gradient_checkpointing: bool | Literal["auto"] = "auto"
    dropout: bool = False  # the base's own dropout during training
    compile: bool = False  # torch.compile the base
    seed: Whole = 0  # of the adapter's birth, the order of rows and every random choice
    save_every: Count = 100  # steps between checkpoints
    keep: Count = 2  # checkpoints kept
    log_every: Count = 10  # steps between printed lines
    eval_every: Whole = 0  # steps between evaluations; 0: after every epoch
    patience: Whole = 0  # stop after so many evaluations without a better loss; 0: never
    # at a step that is not finite: stop, or skip it (at most 3 in a row)
    on_nan: Literal["stop", "skip"] = "stop"
    samples: list[str] = []  # prompts answered at every evaluation, kept in samples.md
    sample_tokens: Count = 64  # length of these answers
    report_to: Trackers = []  # trackers that receive the run: tensorboard, wandb, mlflow, trackio


class Evaluate(Section):
    metrics: list[Name] = ["perplexity"]  # builtin names, or module:function of yours; by default the stage's
    max_new_tokens: Count = 128  # length of generated answers
    limit: Count | None = None  # score only so many rows: a random sample by data.seed
    batch_size: Count = 8  # rows per forward


class Recipe(Section):
    # folder, hub id, seedling, or {config: ..., tokenizer: ...} for a fresh model
    model: ModelSource = "seedling"
    # how the frozen base is stored: none, nf4, fp4, int8; in groups: int4, int3, int2, int8g
    quant: Quant = "none"
    # weights that share a scale and a minimum; 0: 32 (nf4, fp4: a maximum, 64)
    group_size: Literal[0, 32, 64, 128] = 0
    # number format of base and computation: bf16, fp32; auto: the one that multiplies faster here, and fits
    dtype: Literal["auto", "bf16", "fp32"] = "auto"
    # what the rows are used for: a name, or {name: preference, beta: 0.1, ...} with settings of that stage
    stage: Stages = "sft"
    # what is minimised, of a stage that has several: pretrain has causal, masked, span; or file.py:function,
    # which maps (base, batch) to (summed loss, metrics)
    objective: Name = "causal"
    # what is trained; `graft methods` lists them, and presets such as dora and qlora
    method: Methods = {"name": "lora"}
    adapter: Name | None = None  # a saved adapter to go on from, instead of a new one; the method is its own
    data: Data = Data()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    output: Name = "runs/latest"  # the run's folder

    @property
    def stage_name(self) -> str:
        """The name of the stage; `graft train --help` lists them."""
        return str(self.stage["name"]) if isinstance(self.stage, dict) else self.stage

    @property
    def stage_settings(self) -> dict[str, Any]:
        """The settings of the stage's own, every one resolved; empty for a stage without."""
        settings = self.stage if isinstance(self.stage, dict) else {}
        return {key: value for key, value in settings.items() if key != "name"}

    @property
    def methods(self) -> list[dict[str, Any]]:
        """The methods in order, each {name, settings...} with every setting resolved."""
        return self.method if isinstance(self.method, list) else [self.method]

    @property
    def fresh(self) -> bool:
        """Whether the model starts from random weights."""
        return isinstance(self.model, Fresh)

    def yaml(self) -> str:
        """Write the whole recipe as YAML, each key with its help. Reading it back gives an equal recipe."""
        help_of_method = {} if isinstance(self.method, list) else method_help(self.method)
        return emit(self.model_dump(), explain() | help_of_method | stage_help(self.stage_name))


def explain() -> dict[str, str]:
    """Return every dotted key with its line of help, in the order of the file."""
    here = Path(__file__)
    sections = {"data": "Data", "train": "Train", "evaluate": "Evaluate"}
    help_by_key: dict[str, str] = {}
    for name, setting in settings(here, "Recipe").items():
        if name in sections:
            inner = settings(here, sections[name])
            help_by_key |= {f"{name}.{key}": entry.help for key, entry in inner.items()}
        elif not name.startswith("_"):
            help_by_key[name] = setting.help
    return help_by_key
