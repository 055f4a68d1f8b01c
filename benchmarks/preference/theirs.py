"""The peer's side: TRL's RewardTrainer and DPOTrainer with PEFT, from our adapter's file, on our order of
rows."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
import torch
from datasets import Dataset
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

Rows = list[dict[str, str]]
ROWS = 16  # of a forward in which answers are scored


class Timed(TrainerCallback):
    """Notes the seconds of every step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._since = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.seconds.append(time.perf_counter() - self._since)


class _Losses:
    """Keeps the loss of every step whole: TRL's log rounds it.  Mixed into a trainer."""

    def compute_loss(self, model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
        loss = super().compute_loss(model, inputs, *rest, **more)  # type: ignore[misc]
        self.losses.append(float(loss.detach()))  # type: ignore[attr-defined]
        return loss


class DPO(_Losses, DPOTrainer):  # type: ignore[misc]
    pass


class Reward(_Losses, RewardTrainer):  # type: ignore[misc]
    pass


def trainer(
    stage: str, model: Path, start: Path, rows: Rows, *, setting: Any, beta: float, centring: float,
    folder: Path, callbacks: Sequence[Any] = (),
) -> Any:  # fmt: skip
    """Return a trainer of a stage, "reward" or "dpo", that goes over the rows in their order.

    start: an adapter's folder, as PEFT reads it.  setting: with steps, batch_size, lr and context.
    """
    common = {
        "output_dir": str(folder), "per_device_train_batch_size": setting.batch_size,
        "max_steps": setting.steps, "learning_rate": setting.lr, "lr_scheduler_type": "linear",
        "warmup_steps": 0, "weight_decay": 0.0, "max_grad_norm": 1.0, "logging_steps": 1, "report_to": [],
        "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "max_length": setting.context,
        "save_strategy": "no", "disable_tqdm": True, "train_sampling_strategy": "sequential",
    }  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(model)
    if stage == "dpo":
        kind: Any = DPO
        arguments: Any = DPOConfig(beta=beta, **common)
        bare = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    else:
        kind, arguments = Reward, RewardConfig(center_rewards_coefficient=centring, **common)
        bare = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1, dtype=torch.float32)
    made = kind(
        model=peft.PeftModel.from_pretrained(bare, start, is_trainable=True), args=arguments,
        train_dataset=Dataset.from_list(rows), processing_class=tokenizer, callbacks=list(callbacks),
    )  # fmt: skip
    made.losses = []
    return made


@torch.no_grad()
def margins(made: Any, stage: str, rows: Rows, beta: float) -> list[float]:
    """Return by how much each pair's chosen answer is ahead, by the trained model of a trainer.

    It is the reward's difference, or β times that of the log-ratios; computed here from the model's outputs.
    """
    model = made.model.eval()
    value = _rewards if stage == "reward" else _log_ratios
    texts = [(row["prompt"], row[side]) for row in rows for side in ("chosen", "rejected")]
    values: list[float] = []
    for at in range(0, len(texts), ROWS):
        values += value(model, made.processing_class, texts[at : at + ROWS], beta)
    return [chosen - rejected for chosen, rejected in zip(values[::2], values[1::2], strict=True)]


def _rewards(model: Any, tokenizer: Any, texts: Sequence[tuple[str, str]], beta: float) -> list[float]:
    batch = tokenizer([asked + said + tokenizer.eos_token for asked, said in texts], **PADDED)
    return model(**batch).logits[:, 0].tolist()  # type: ignore[no-any-return]


def _log_ratios(model: Any, tokenizer: Any, texts: Sequence[tuple[str, str]], beta: float) -> list[float]:
    batch = tokenizer([asked + said + tokenizer.eos_token for asked, said in texts], **PADDED)
    begins = torch.tensor([len(tokenizer(asked)["input_ids"]) for asked, _ in texts])
    ids, live = batch["input_ids"], batch["attention_mask"]
    said = (live * (torch.arange(ids.shape[1]) >= begins[:, None]))[:, 1:]

    def summed() -> torch.Tensor:
        logits = model(input_ids=ids, attention_mask=live).logits[:, :-1]
        return (F.log_softmax(logits, -1).gather(-1, ids[:, 1:, None])[..., 0] * said).sum(1)

    policy = summed()
    model.set_adapter("ref")
    reference = summed()
    model.set_adapter("default")
    return (beta * (policy - reference)).tolist()  # type: ignore[no-any-return]


PADDED = {"return_tensors": "pt", "padding": True, "padding_side": "right"}
