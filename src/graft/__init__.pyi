"""The public names of graft, for type checkers and editors. `python docs/write_stub.py` writes this."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from graft.base.adapter import Adapter as Adapter
from graft.base.base import Base as Base
from graft.combine.blend import blend as blend
from graft.combine.extract import extract as extract
from graft.core.insert import Insert as Insert
from graft.core.method import Method as Method
from graft.core.site import Site as Site
from graft.errors import GraftError as GraftError
from graft.errors import Notice as Notice
from graft.generate.request import Completion as Completion
from graft.methods.adalora import AdaLoRA as AdaLoRA
from graft.methods.adamix import AdaMix as AdaMix
from graft.methods.adapter_fusion import AdapterFusion as AdapterFusion
from graft.methods.attention_fusion import AttentionFusion as AttentionFusion
from graft.methods.bitfit import BitFit as BitFit
from graft.methods.boft import BOFT as BOFT
from graft.methods.compacter import Compacter as Compacter
from graft.methods.full import Full as Full
from graft.methods.houlsby import Houlsby as Houlsby
from graft.methods.ia3 import IA3 as IA3
from graft.methods.ipt import IPT as IPT
from graft.methods.krona import KronA as KronA
from graft.methods.krona_b import KronAB as KronAB
from graft.methods.ladder import Ladder as Ladder
from graft.methods.lets import LeTS as LeTS
from graft.methods.ln_tuning import LNTuning as LNTuning
from graft.methods.loha import LoHa as LoHa
from graft.methods.lokr import LoKr as LoKr
from graft.methods.lora import LoRA as LoRA
from graft.methods.oft import OFT as OFT
from graft.methods.p_tuning import PTuning as PTuning
from graft.methods.parallel import Parallel as Parallel
from graft.methods.pfeiffer import Pfeiffer as Pfeiffer
from graft.methods.prefix import PrefixTuning as PrefixTuning
from graft.methods.prompt import PromptTuning as PromptTuning
from graft.methods.qa_lora import QALoRA as QALoRA
from graft.methods.subset import Subset as Subset
from graft.methods.task_head import TaskHead as TaskHead
from graft.methods.trainable_tokens import TrainableTokens as TrainableTokens
from graft.methods.vera import VeRA as VeRA
from graft.methods.warp import WARP as WARP
from graft.models.load import load as load
from graft.planning.estimate import Plan as Plan
from graft.planning.plan import plan as plan
from graft.recipe.tree import Recipe as Recipe
from graft.runs.chain import run as run
from graft.runs.result import RunResult as RunResult
from graft.runs.sweep import sweep as sweep
from graft.shipping.export import export as export
from graft.stages.stage import Stage as Stage
from graft.training.observer import Observer as Observer

__version__: str
__all__: list[str]

def train(
    base: Base,
    adapter: Adapter | str,
    data: Any,
    *,
    output: str | Path | None = None,
    stage: str | Mapping[str, Any] = "sft",
    objective: str | Callable[[Any, Any], Any] | None = None,
    evaluate: Mapping[str, Any] | None = None,
    observer: Any = None,
    progress: bool = True,
    epochs: float = 1.0,
    max_steps: int | None = None,
    batch_size: int = 16,
    micro_batch_size: int = 2,
    lr: float = 0.0002,
    schedule: Literal["linear", "cosine", "constant"] = "linear",
    warmup: float = 0.03,
    weight_decay: float = 0.0,
    betas: list[float] = [0.9, 0.999],
    eps: float = 1e-08,
    clip: float = 1.0,
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"] = "adamw",
    paged_budget_mb: int = 0,
    neftune_alpha: float = 0.0,
    gradient_checkpointing: bool | Literal["auto"] = "auto",
    dropout: bool = False,
    compile: bool = False,
    seed: int = 0,
    save_every: int = 100,
    keep: int = 2,
    log_every: int = 10,
    eval_every: int = 0,
    patience: int = 0,
    on_nan: Literal["stop", "skip"] = "stop",
    samples: list[str] = [],
    sample_tokens: int = 64,
    report_to: list[str] = [],
) -> RunResult:
    """Train an attached adapter on rows: the same run as a recipe's, with a base that is already loaded.

    adapter: it, or its name.
    data: a path, several paths, or rows: dicts or texts in a list, a generator, a data set of `datasets`, a
    table of pandas, polars or pyarrow; or the keys of a recipe's `data:`, whose train, eval and test may be
    rows. The run's folder keeps rows in memory.
    output: the run's folder, by default runs/ and the adapter's name.
    stage, evaluate: as in a recipe.
    objective: as in a recipe, or a function of your own (see `runs.own_objective`).
    observer: one or several (`graft.Observer`) that hear of it.  progress: show a bar.
    The other keywords are the keys of a recipe's `train:`.  Raises as `run` does.

    epochs: passes over the data
    max_steps: stop after so many optimiser steps instead
    batch_size: rows per optimiser step
    micro_batch_size: rows per forward; changes memory and speed, never the step
    lr: peak learning rate
    schedule: of the learning rate after the warm-up: linear, cosine, constant
    warmup: share of the steps in which the learning rate rises
    weight_decay: decoupled weight decay
    betas: AdamW's averages of gradient and square
    eps: AdamW's denominator floor
    clip: largest gradient norm; 0 does not clip
    optimizer: adamw, adamw_8bit, paged_adamw, paged_adamw_8bit; paged: states off the device
    paged_budget_mb: optimizer state kept on the device by the paged optimizers
    neftune_alpha: noise on the embeddings of training rows; 0 is none
    gradient_checkpointing: compute activations again in backward: less memory, about a third more
        time; auto: if memory is short
    dropout: the base's own dropout during training
    compile: torch.compile the base
    seed: of the adapter's birth, the order of rows and every random choice
    save_every: steps between checkpoints
    keep: checkpoints kept
    log_every: steps between printed lines
    eval_every: steps between evaluations; 0: after every epoch
    patience: stop after so many evaluations without a better loss; 0: never
    on_nan: at a step that is not finite: stop, or skip it (at most 3 in a row)
    samples: prompts answered at every evaluation, kept in samples.md
    sample_tokens: length of these answers
    report_to: trackers that receive the run: tensorboard, wandb, mlflow, trackio
    """

# Parts of the package: an editor that lists files does not complete them.
if sys.platform == "none":
    del base  # noqa: F821
    del cli  # noqa: F821
    del combine  # noqa: F821
    del core  # noqa: F821
    del data  # noqa: F821
    del errors  # noqa: F821
    del evaluate  # noqa: F821
    del formats  # noqa: F821
    del generate  # noqa: F821
    del kernels  # noqa: F821
    del layers  # noqa: F821
    del methods  # noqa: F821
    del models  # noqa: F821
    del objectives  # noqa: F821
    del planning  # noqa: F821
    del quant  # noqa: F821
    del recipe  # noqa: F821
    del runs  # noqa: F821
    del seedling  # noqa: F821
    del serve  # noqa: F821
    del shipping  # noqa: F821
    del sizes  # noqa: F821
    del stages  # noqa: F821
    del storage  # noqa: F821
    del training  # noqa: F821
    del importlib, sys  # noqa: F821
