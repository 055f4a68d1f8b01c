"""Whole runs beside TRL's trainers: the same start, rows, order and steps give the same curves."""

import json

import peft
import pytest
import torch
from tiny_folder import ANIMALS, TOYS, write_model, write_rows
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import graft

STEPS, ROWS = 4, 16
METHOD = {"name": "lora", "r": 4, "target_modules": ["q_proj", "v_proj", "down_proj"]}


def pairs():
    """Pairs whose prompts end where a token ends: of others TRL cuts the end off."""
    return [
        {
            "prompt": f"Day {i}. What does the {ANIMALS[i % 4]} want?",
            "chosen": f" The {ANIMALS[i % 4]} wants a {TOYS[i % 3]}.",
            "rejected": (" Nothing at all.", " What?", " The day wants what the day does.")[i % 3],
        }
        for i in range(ROWS)
    ]


def verdicts():
    """One answer to every prompt; most are good, so that answers to other prompts gain too."""
    good = [i % 4 != 3 for i in range(ROWS)]
    return [
        {"prompt": row["prompt"], "completion": row["chosen" if fine else "rejected"], "label": fine}
        for row, fine in zip(pairs(), good, strict=True)
    ]


@pytest.fixture(scope="module", autouse=True)
def no_network():
    """TRL's trainers report each use to a server, unless they are told not to."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_HUB_DISABLE_TELEMETRY", "HF_HUB_OFFLINE"):
            patch.setattr(f"huggingface_hub.constants.{name}", True)
        yield


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    pytest.importorskip("trl")
    folder = tmp_path_factory.mktemp("trl")
    write_model(folder / "model")
    write_rows(folder / "pairs.jsonl", pairs())
    write_rows(folder / "verdicts.jsonl", verdicts())
    write_rows(
        folder / "answers.jsonl", [{"prompt": r["prompt"], "completion": r["rejected"]} for r in pairs()]
    )
    return folder


def ours(home, name, stage, rows="pairs", **changes):
    """Return (the run, the lines of its steps), each of which sees all rows."""
    train = {"epochs": STEPS, "lr": 1e-2, "schedule": "constant", "warmup": 0.0, "clip": 0.0}
    sizes = {"batch_size": ROWS, "micro_batch_size": ROWS}
    settings = {
        "model": str(home / "model"),
        "dtype": "fp32",
        "stage": stage,
        "data": {"train": str(home / f"{rows}.jsonl"), "eval": None, "max_length": 64},
        "train": {**train, **sizes, **changes.pop("train", {})},
        "output": str(home / name),
    }
    result = graft.run(settings | changes)
    lines = (home / name / "metrics.jsonl").read_text().splitlines()
    return result, [json.loads(line) for line in lines]


def theirs(home, kind, config, model, rows):
    """Return what a trainer of TRL logs at each step."""
    from datasets import Dataset

    arguments = config(
        output_dir=str(home / "theirs"), per_device_train_batch_size=ROWS, max_steps=STEPS,
        learning_rate=1e-2, lr_scheduler_type="constant", warmup_steps=0, logging_steps=1, report_to=[],
        use_cpu=True, bf16=False, max_grad_norm=0.0, gradient_checkpointing=False, weight_decay=0.0,
        max_length=64, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(home / "model")
    trainer = kind(
        model=model, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )
    trainer.train()
    return [line for line in trainer.state.log_history if "loss" in line]


def test_dpo_from_an_adapter_takes_the_steps_of_dpo_trainer(home):
    from trl import DPOConfig, DPOTrainer

    tuned, _ = ours(home, "sft", "sft", "answers", method=METHOD, train={"lr": 5e-3})
    _, mine = ours(home, "dpo", "dpo", adapter=str(tuned.adapter))
    base = AutoModelForCausalLM.from_pretrained(home / "model", dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(base, tuned.adapter, is_trainable=True)
    other = theirs(home, DPOTrainer, DPOConfig, model, pairs())
    for one, two in zip(mine, other, strict=True):
        assert one["loss"] == pytest.approx(two["loss"], abs=2e-4)
        assert one["margin"] == pytest.approx(two["rewards/margins"], abs=1e-3)
        assert one["logp_chosen"] == pytest.approx(two["logps/chosen"], abs=1e-2)
        assert one["logp_rejected"] == pytest.approx(two["logps/rejected"], abs=1e-2)
    assert mine[-1]["loss"] < 0.5 < mine[0]["loss"]


def test_kto_from_an_adapter_takes_the_steps_of_kto_trainer(home):
    """TRL pairs every prompt with the answer before it in the batch, which is here the whole data."""
    from trl import KTOConfig, KTOTrainer

    tuned, _ = ours(home, "tuned", "sft", "answers", method=METHOD, train={"lr": 5e-3})
    _, mine = ours(home, "kto", "kto", "verdicts", adapter=str(tuned.adapter))
    base = AutoModelForCausalLM.from_pretrained(home / "model", dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(base, tuned.adapter, is_trainable=True)
    other = theirs(home, KTOTrainer, KTOConfig, model, verdicts())
    for one, two in zip(mine, other, strict=True):
        assert one["loss"] == pytest.approx(two["loss"], abs=2e-4)
        assert one["margin"] == pytest.approx(two.get("rewards/margins", 0.0), abs=1e-3)
        assert one["reference_point"] == pytest.approx(0.1 * two["kl"], abs=1e-3)
    assert mine[-1]["reference_point"] > 0.01 and mine[-1]["loss"] < mine[0]["loss"]


def test_a_reward_model_takes_the_steps_of_reward_trainer(home):
    from trl import RewardConfig, RewardTrainer

    stage = {"name": "reward", "centring": 0.0}
    born, _ = ours(home, "born", stage, method=METHOD, train={"max_steps": 1, "lr": 1e-12})
    _, mine = ours(home, "reward", stage, adapter=str(born.adapter))
    base = AutoModelForSequenceClassification.from_pretrained(
        home / "model", num_labels=1, dtype=torch.float32
    )
    model = peft.PeftModel.from_pretrained(base, born.adapter, is_trainable=True)
    other = theirs(home, RewardTrainer, RewardConfig, model, pairs())
    for one, two in zip(mine, other, strict=True):
        assert one["loss"] == pytest.approx(two["loss"], abs=2e-4)
        assert one["margin"] == pytest.approx(two["margin"], abs=1e-3)
        assert one["accuracy"] == pytest.approx(two["accuracy"])
    assert mine[-1]["loss"] < 0.8 * mine[0]["loss"]
