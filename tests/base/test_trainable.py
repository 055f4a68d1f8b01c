"""An adapter in loops of others: own loop, Trainer and lm-eval see the losses and answers of Graft itself."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import Trainer, TrainingArguments

import graft
from graft.errors import ModelError, Notice
from graft.methods.adalora import AdaLoRA
from graft.methods.krona import KronA
from graft.methods.lora import LoRA
from graft.methods.prompt import PromptTuning
from graft.methods.task_head import TaskHead
from graft.training import loop
from models import inputs, randomise, tiny_base

PAGE = Path(__file__).resolve().parents[2] / "docs/quickstart/own-loop.md"
NAMES = ("Silver Otter", "Green Heron", "Old Fox", "Red Kite", "Grey Owl", "Blue Jay")
THINGS = ("kettle", "lamp", "desk", "chair", "wide shelf", "small bowl")
LR, DECAY, CLIP, STEPS = 3e-3, 0.1, 0.05, 6


@pytest.fixture(scope="module")
def model():
    """Load the seedling once; adapters come and go."""
    return graft.load("seedling", dtype="fp32")


@pytest.fixture
def adapter(model):
    """Attach the adapter with which every loop begins."""
    torch.manual_seed(0)
    yield model.attach("x", LoRA(r=4, target_modules="all-linear"))
    model.train(False)
    model.checkpointing(False)
    model.detach("x")


@pytest.fixture(scope="module")
def taught(model, tmp_path_factory):
    """Return the losses of graft.train, the batch of each of its steps, and what it has trained."""
    folder = tmp_path_factory.mktemp("run")
    rows = [
        {"prompt": f"name: {name}", "completion": f"The {name} is a {thing}."}
        for name, thing in zip(NAMES, THINGS, strict=True)
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    torch.manual_seed(0)
    adapter = model.attach("x", LoRA(r=4, target_modules="all-linear"))
    batches, measure = [], loop.measure

    def noting(base, adapter, objective, given, arm):
        batches.extend(given)
        return measure(base, adapter, objective, given, arm)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "measure", noting)
        how = {"batch_size": 2, "micro_batch_size": 2, "schedule": "constant", "warmup": 0.0, "lr": LR}
        how |= {"max_steps": STEPS, "clip": CLIP, "weight_decay": DECAY}
        data = {"train": str(folder / "rows.jsonl"), "eval": None, "pack": False}
        graft.train(model, adapter, data=data, output=folder / "run", **how)
    lines = map(json.loads, (folder / "run/metrics.jsonl").read_text(encoding="utf-8").splitlines())
    losses = [line["loss"] for line in lines if "loss" in line]
    state = {key: tensor.clone() for key, tensor in adapter.checkpoint_state().items()}
    model.detach("x")
    assert len(losses) == STEPS == len(batches) and losses[-1] < losses[0]
    return losses, batches, state


def same_as(adapter, state):
    """Assert that the same was trained. Adam divides small gradients by themselves, so rounding grows."""
    for key, tensor in adapter.checkpoint_state().items():
        assert_close(tensor, state[key], atol=3e-4, rtol=0)


def test_a_loop_of_ones_own_has_the_losses_of_graft_train(model, taught, adapter):
    wanted, batches, state = taught
    optimizer = torch.optim.AdamW(adapter.param_groups(LR), weight_decay=DECAY)
    losses = []
    model.train()
    with model.using("x"):
        for batch in batches:
            loss = model.model(**batch.inputs, labels=batch.labels).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(adapter.parameters(), CLIP)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    assert_close(losses, wanted, atol=0, rtol=1e-6)
    same_as(adapter, state)


class Exact(Trainer):
    """Trainer, with the losses as they are: its log rounds them."""

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        self.__dict__.setdefault("losses", []).append(loss.item())
        return loss


def trainer(module, batches, folder, optimizers=(None, None), **settings):
    """Return a Trainer that learns these batches in their order."""
    settings = {
        "max_steps": STEPS,
        "learning_rate": LR,
        "lr_scheduler_type": "constant",
        "weight_decay": DECAY,
        "max_grad_norm": CLIP,
        "per_device_train_batch_size": 1,
        "train_sampling_strategy": "sequential",
        "optim": "adamw_torch",
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        **settings,
    }
    return Exact(
        model=module,
        args=TrainingArguments(str(folder), **settings),
        train_dataset=[{**batch.inputs, "labels": batch.labels} for batch in batches],
        data_collator=lambda found: found[0],
        optimizers=optimizers,
    )


@pytest.mark.parametrize("checkpointing", [False, True])
def test_trainer_has_the_losses_of_graft_train(model, taught, adapter, tmp_path, checkpointing):
    wanted, batches, state = taught
    teacher = trainer(model.trainable("x"), batches, tmp_path, activation_checkpointing=checkpointing)
    teacher.train()
    assert_close(teacher.losses, wanted, atol=0, rtol=1e-6)
    same_as(adapter, state)


def test_trainer_resumes_from_a_checkpoint_that_holds_the_adapter_alone(model, taught, adapter, tmp_path):
    wanted, batches, state = taught
    trainer(model.trainable("x"), batches, tmp_path, max_steps=STEPS, save_steps=3).train()
    held = load_file(tmp_path / "checkpoint-3/model.safetensors")
    assert sum(tensor.numel() for tensor in held.values()) == adapter.count()
    model.detach("x")
    torch.manual_seed(7)
    again = model.attach("x", LoRA(r=4, target_modules="all-linear"))
    teacher = trainer(model.trainable("x"), batches, tmp_path)
    teacher.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert_close(teacher.losses, wanted[3:], atol=0, rtol=1e-6)
    same_as(again, state)


def test_trainer_evaluates_what_it_trains(model, taught, adapter, tmp_path):
    _, batches, _ = taught
    randomise(adapter, scale=0.05)
    teacher = trainer(model.trainable("x"), batches, tmp_path, per_device_eval_batch_size=1)
    found = teacher.evaluate(teacher.train_dataset)["eval_loss"]
    with model.using("x"), torch.no_grad():
        losses = [model(**batch.inputs, labels=batch.labels).loss.item() for batch in batches]
    assert found == pytest.approx(sum(losses) / len(losses), abs=1e-5)


def test_trainer_on_the_model_inside_using_has_the_losses_of_graft_train(model, taught, adapter, tmp_path):
    wanted, batches, state = taught
    optimizer = torch.optim.AdamW(adapter.param_groups(LR), weight_decay=DECAY)

    def clip(*_):  # Trainer clips the model's parameters, which are frozen
        torch.nn.utils.clip_grad_norm_(adapter.parameters(), CLIP)

    optimizer.register_step_pre_hook(clip)
    with model.using("x"):
        teacher = trainer(model.model, batches, tmp_path, (optimizer, None), save_strategy="no")
        teacher.train()
    assert_close(teacher.losses, wanted, atol=0, rtol=1e-6)
    same_as(adapter, state)
    assert all(p.grad is None for p in model.model.parameters())


def test_lm_eval_on_the_model_inside_using_measures_the_adapter(model, adapter):
    hflm = pytest.importorskip("lm_eval.models.huggingface", reason="an extra").HFLM
    from lm_eval.api.instance import Instance

    randomise(adapter, scale=0.05)
    prompt, answer = "The Silver Otter is a", " kettle"
    told = {}
    for name in ("x", None):
        with model.using(name):
            asked = hflm(pretrained=model.model, tokenizer=model.tokenizer)
            request = Instance("loglikelihood", {}, (prompt, answer), 0)
            told[name] = asked.loglikelihood([request], disable_tqdm=True)[0][0]
            # lm-eval's own way to cut a text into tokens; the numbers are those of the base's own forward.
            context, continuation = asked._encode_pair(prompt, answer)
            ids = torch.tensor([context + continuation])
            with torch.no_grad():
                likely = model(ids).logits[0, len(context) - 1 : -1].log_softmax(1)
        wanted = likely.gather(1, torch.tensor(continuation)[:, None]).sum().item()
        assert told[name] == pytest.approx(wanted, rel=1e-5)
    assert abs(told["x"] - told[None]) > 0.01


def test_every_column_that_the_model_takes_reaches_it(model, taught, adapter, tmp_path):
    teacher = trainer(model.trainable("x"), taught[1], tmp_path)
    teacher._set_signature_columns_if_needed()
    own = trainer(model.model, taught[1], tmp_path)
    own._set_signature_columns_if_needed()
    assert teacher._signature_columns == own._signature_columns


@pytest.mark.parametrize(
    "method", [LoRA(), KronA(), PromptTuning(num_virtual_tokens=3, prompt_tuning_init="RANDOM")]
)
def test_what_a_module_holds_is_the_adapter(method):
    base, other = tiny_base(), tiny_base()
    adapter = base.attach("x", method)
    randomise(adapter)
    module = base.trainable("x")
    assert {id(p) for p in module.parameters()} == {id(p) for p in adapter.parameters()}
    again = other.attach("x", method)
    state = module.state_dict()
    assert len({tensor.data_ptr() for tensor in state.values()}) == len(state)
    assert not any(other.trainable("x").load_state_dict(state))
    for key, tensor in again.checkpoint_state().items():
        assert torch.equal(tensor, adapter.checkpoint_state()[key])
    ids = inputs("llama")["ids"]
    with base.using("x"):
        wanted = base(ids).logits
    assert torch.equal(module(ids).logits, wanted) and torch.equal(module(input_ids=ids).logits, wanted)


def test_a_module_switches_modes_and_moves_with_its_base():
    base = tiny_base("bert")
    adapter = base.attach("x", LoRA(lora_dropout=0.5))
    module = base.trainable("x")
    module.train()
    assert base.model.training and all(insert.training for _, insert in adapter.inserts)
    assert not any(m.p for m in base.model.modules() if isinstance(m, torch.nn.Dropout)), "its own dropout"
    module.eval()
    assert not base.model.training and not any(insert.training for _, insert in adapter.inserts)
    module.to(torch.float64)
    assert base.dtype == torch.float64 == next(iter(adapter.parameters())).dtype


def test_a_task_head_is_refused_and_what_a_loop_must_do_itself_is_said():
    base = tiny_base()
    base.attach("head", TaskHead(num_labels=2))
    base.attach("ada", AdaLoRA())
    with pytest.raises(ModelError, match="task head"):
        base.trainable("head")
    with pytest.warns(Notice, match=r"adapter\.after_step"):
        base.trainable("ada")


def test_the_page_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        if "lm_eval" in block and importlib.util.find_spec("lm_eval") is None:
            continue  # an extra
        exec(compile(block, str(PAGE), "exec"), names)
    losses = [float(line.split()[1]) for line in capsys.readouterr().out.splitlines()[:10]]
    assert losses[-1] < losses[0]
    assert (tmp_path / "adapters/otter/adapter_model.safetensors").exists()
