"""AdaLoRA's allocation of ranks against PEFT's allocator, in the loop, and in files with a rank pattern."""

import copy
import json
from types import SimpleNamespace

import peft
import pytest
import torch
from stage_tools import feed_of
from torch.testing import assert_close

from graft.base.base import Base
from graft.data.encode import Example
from graft.errors import UsageError
from graft.methods.adalora import AdaLoRA
from graft.objectives.lm import language_modelling
from graft.recipe import Train
from graft.training import Task, Trainer
from models import inputs, randomise, tiny_base, tiny_model

SETTINGS = {
    "init_r": 5, "target_r": 2, "tinit": 2, "tfinal": 3, "deltaT": 2, "lora_alpha": 20,
    "orth_reg_weight": 0.1, "beta1": 0.7, "beta2": 0.6, "total_step": 12,
}  # fmt: skip


def pair(folder):
    """PEFT's model and our adapter with the same random triplets, in training."""
    model = tiny_model("llama")
    config = peft.AdaLoraConfig(target_modules=["q_proj", "down_proj"], **SETTINGS)
    tuned = peft.get_peft_model(copy.deepcopy(model), config)
    with torch.no_grad():
        for name, p in tuned.named_parameters():
            if "lora_" in name and p.requires_grad:
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name))) * 0.2)
    tuned.save_pretrained(folder)
    base = Base(model)
    adapter = base.load_adapter(folder, "x")
    targets = adapter.methods[0].target_modules  # a set in PEFT: in any order
    assert adapter.methods[0] == AdaLoRA(target_modules=targets, **SETTINGS)
    base.train()
    return tuned, base, adapter


def step(base, adapter, optimizer, ids, number, total=99):
    optimizer.zero_grad()
    with base.using("x"):
        loss = base(ids, labels=ids).loss
    (loss + adapter.extra_loss([loss])).backward()
    optimizer.step()
    adapter.after_step(number, total)


def test_the_same_ranks_are_taken_at_the_same_steps_as_by_peft(tmp_path):
    tuned, base, adapter = pair(tmp_path / "start")
    ids = inputs("llama")["ids"]
    mine, other = (
        torch.optim.SGD([p for p in ps if p.requires_grad], lr=0.1)
        for ps in (adapter.parameters(), tuned.parameters())
    )
    left = []
    for number in range(1, 13):
        step(base, adapter, mine, ids, number)
        other.zero_grad()
        tuned.base_model(input_ids=ids, labels=ids).loss.backward()
        other.step()
        tuned.base_model.update_and_allocate(number)
        own = {f"{key}": p for key, p in tuned.named_parameters()}
        for site, insert in adapter.inserts:
            for name in "ABE":
                reference = own[f"base_model.model.{site.name}.lora_{name}.default"]
                assert_close(
                    getattr(insert, name), reference, atol=1e-5, rtol=1e-4, msg=f"{number} {site.name} {name}"
                )
        left.append(sum(int((insert.E != 0).sum()) for _, insert in adapter.inserts))
    assert left[:3] == [20, 20, 20] and left[8:] == [
        8,
        8,
        8,
        8,
    ]  # until tinit all, from total - tfinal target_r each
    assert 8 < left[3] < 20

    adapter.save(tmp_path / "ours")
    tuned.save_pretrained(tmp_path / "theirs")
    config, wanted = (
        json.loads((tmp_path / f / "adapter_config.json").read_text()) for f in ("ours", "theirs")
    )
    assert config["rank_pattern"] == wanted["rank_pattern"]
    state, reference = adapter.file_state(), peft.get_peft_model_state_dict(tuned)
    assert {k: t.shape for k, t in state.items()} == {k: t.shape for k, t in reference.items()}


def trained(folder, steps):
    """An adapter after so many steps."""
    _, base, adapter = pair(folder)
    optimizer = torch.optim.SGD(adapter.parameters(), lr=0.1)
    for number in range(1, steps + 1):
        step(base, adapter, optimizer, inputs("llama")["ids"], number)
    return base, adapter, optimizer


@pytest.mark.parametrize("steps", [5, 12])  # with triplets that grow back, and at the end
def test_a_pruned_adapter_travels_to_peft_and_back_and_can_be_trained_further(tmp_path, steps):
    base, adapter, _ = trained(tmp_path / "start", steps)
    base.train(False)
    batch = inputs("llama")
    with base.using("x"):
        wanted = base(**batch).logits
    adapter.save(tmp_path / "one")
    tuned = peft.PeftModel.from_pretrained(tiny_model("llama"), tmp_path / "one")
    assert_close(tuned(input_ids=batch["ids"]).logits, wanted, atol=1e-5, rtol=1e-5)
    tuned.save_pretrained(tmp_path / "two")
    again = base.load_adapter(tmp_path / "two", "y")
    with base.using("y"):
        assert_close(base(**batch).logits, wanted, atol=1e-5, rtol=1e-5)
    assert again.count() == sum(t.numel() for t in adapter.file_state().values())

    insert = max((insert for _, insert in again.inserts), key=lambda insert: len(insert.A))
    insert.keep(torch.arange(len(insert.A)) > 0)  # one more is taken: the pattern still counts from init_r
    again.save(tmp_path / "three")
    third = base.load_adapter(tmp_path / "three", "z")
    with base.using("z"):
        shrunk = base(**batch).logits
    with base.using("y"):
        assert_close(shrunk, base(**batch).logits, atol=1e-6, rtol=1e-6)
    assert third.count() < again.count()
    theirs = peft.PeftModel.from_pretrained(tiny_model("llama"), tmp_path / "three")
    assert_close(theirs(input_ids=batch["ids"]).logits, shrunk, atol=1e-5, rtol=1e-5)


def test_going_on_from_checkpoint_tensors_is_the_undisturbed_run_bit_for_bit(tmp_path):
    _, calm, _ = trained(tmp_path, 12)
    _, early, _ = trained(tmp_path, 5)
    kept = {key: tensor.clone() for key, tensor in early.checkpoint_state().items()}
    _, base, adapter = pair(tmp_path)
    adapter.restore_checkpoint_state(kept)
    optimizer = torch.optim.SGD(adapter.parameters(), lr=0.1)
    for number in range(6, 13):
        step(base, adapter, optimizer, inputs("llama")["ids"], number)
    assert all(
        torch.equal(adapter.checkpoint_state()[key], tensor)
        for key, tensor in calm.checkpoint_state().items()
    )


def test_the_loop_hands_over_gradients_and_the_length_of_the_run(tmp_path):
    base = tiny_base()
    adapter = base.attach("x", AdaLoRA(init_r=4, target_r=1, tinit=1, tfinal=1))
    ids = torch.randint(4, 90, (6, 9), generator=torch.Generator().manual_seed(0)).tolist()
    examples = [Example(row, row, f"rows:{n}") for n, row in enumerate(ids)]
    tokenizer = SimpleNamespace(pad_token_id=0, eos_token_id=2, mask_token_id=None)
    feed = feed_of(
        examples, tokenizer, batch_size=3, micro_batch_size=3, max_length=32, pack=True, seed=0, stage="sft"
    )
    Trainer(
        base, "x", Task(feed, language_modelling), Train(max_steps=5, lr=1e-2, warmup=0.0), tmp_path
    ).run()
    assert all(insert.get_buffer("importance_E").abs().sum() > 0 for _, insert in adapter.inserts)
    assert sum(int(insert.kept.sum()) for _, insert in adapter.inserts) == len(adapter.inserts)
    again = base.load_adapter(tmp_path / "adapter", "y")
    assert again.methods[0].total_step is None and again.count() < adapter.count() / 3


def test_too_short_a_run_is_refused():
    with pytest.raises(UsageError, match="tinit=5 and tfinal=5 of 10 steps"):
        AdaLoRA(tinit=5, tfinal=5, total_step=10)


def test_a_newborn_keeps_all_its_ranks_in_the_file(tmp_path):
    base = tiny_base()
    adapter = base.attach("x", AdaLoRA(init_r=4, target_r=2))
    adapter.save(tmp_path)
    assert base.load_adapter(tmp_path, "y").count() == adapter.count()
    randomise(adapter)
    assert all(insert.left().all() for _, insert in adapter.inserts)
