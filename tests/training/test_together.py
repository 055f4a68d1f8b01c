"""Adapters that are trained at once: what they are called, what restores them, and where they are saved."""

import asking
import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

import graft
from graft.errors import AdapterError
from graft.methods.task_head import TaskHead
from graft.models.load import load
from graft.training.together import SEPARATOR, Together
from models import randomise, tiny_base


def pair(lr=None, seed=0):
    """A policy of two methods, and values of one method with a head, on one base."""
    base = tiny_base()
    policy = base.attach("policy", [graft.LoRA(r=2, target_modules=["q_proj"]), graft.IA3()])
    values = base.attach(
        "policy values", [graft.LoRA(r=3, target_modules=["v_proj"], lr=lr), TaskHead(num_labels=1)]
    )
    randomise(policy, seed)
    randomise(values, seed + 1)
    return base, policy, values


def test_alone_an_adapter_is_what_it_was():
    _, policy, _ = pair()
    alone = Together(policy, {})
    assert dict(alone.named_parameters()) == dict(policy.named_parameters())
    assert alone.checkpoint_state().keys() == policy.checkpoint_state().keys()
    assert alone.count() == policy.count() and alone.inserts == policy.inserts
    assert (alone.name, alone.methods, alone.passes) == (policy.name, policy.methods, policy.passes)


def test_the_names_of_the_first_stay_and_the_others_begin_with_their_folder():
    _, policy, values = pair()
    both = Together(policy, {"values": values})
    names = [name for name, _ in both.named_parameters()]
    own = [name for name, _ in policy.named_parameters()]
    theirs = [name for name, _ in values.named_parameters()]
    assert names == [*own, *(f"values/{name}" for name in theirs)]
    assert len(set(names)) == len(names) and not any(SEPARATOR in name for name in own + theirs)
    assert [p.data_ptr() for p in both.parameters()] == [
        p.data_ptr() for p in [*policy.parameters(), *values.parameters()]
    ]
    assert both.count() == policy.count() + values.count()
    assert values.count() == 2 * 3 * (64 + 32) + 64  # rank 3 on 64 by 32 in two layers, and the head
    assert both.checkpoint_state().keys() == {
        *policy.checkpoint_state(), *(f"values/{key}" for key in values.checkpoint_state()),
    }  # fmt: skip
    assert both.file_state().keys() == policy.file_state().keys()  # the adapter's file is the policy's alone


def test_a_checkpoint_restores_all_of_them_and_each_its_own():
    _, policy, values = pair()
    kept = {
        key: tensor.clone() for key, tensor in Together(policy, {"values": values}).checkpoint_state().items()
    }
    _, fresh, other = pair(seed=7)
    Together(fresh, {"values": other}).restore_checkpoint_state(kept)
    for one, two in ((policy, fresh), (values, other)):
        for key, tensor in one.checkpoint_state().items():
            assert torch.equal(tensor, two.checkpoint_state()[key]), key
    # A checkpoint of one does not fit two, nor that of two one.
    with pytest.raises(AdapterError, match="not in the file"):
        Together(fresh, {"values": other}).restore_checkpoint_state(
            {key: tensor for key, tensor in kept.items() if SEPARATOR not in key}
        )
    with pytest.raises(AdapterError, match="values/"):
        Together(fresh, {}).restore_checkpoint_state(kept)


def test_every_parameter_is_in_one_group_with_its_own_learning_rate():
    _, policy, values = pair(lr=0.5)
    both = Together(policy, {"values": values})
    groups = both.param_groups(0.01)
    grouped = [p.data_ptr() for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(p.data_ptr() for p in both.parameters())
    assert len(set(grouped)) == len(grouped)
    rates = {p.data_ptr(): group["lr"] for group in groups for p in group["params"]}
    assert {rates[p.data_ptr()] for p in policy.parameters()} == {0.01}
    head = [p for p in values.parameters() if p.shape == (1, 64)]
    rest = [p for p in values.parameters() if p.shape != (1, 64)]
    assert [rates[p.data_ptr()] for p in head] == [0.01] and {rates[p.data_ptr()] for p in rest} == {0.5}


def test_steps_are_told_to_all_of_them(monkeypatch):
    _, policy, values = pair()
    told = []
    for adapter in (policy, values):
        monkeypatch.setattr(
            adapter, "after_step", lambda step, total, a=adapter: told.append((a.name, step, total))
        )
    Together(policy, {"values": values}).after_step(3, 10)
    assert told == [("policy", 3, 10), ("policy values", 3, 10)]


def test_each_is_saved_in_a_folder_of_its_own_and_read_from_it(tmp_path):
    base, policy, values = pair()
    both = Together(policy, {"values": values})
    both.save(tmp_path / "adapter")
    both.others["values"].save(tmp_path / "values")
    ids = torch.randint(4, 90, (2, 7), generator=torch.Generator().manual_seed(0))
    expected = {}
    for name in ("policy", "policy values"):
        with base.using(name), torch.no_grad():
            expected[name] = base.hidden(ids)
    other = tiny_base()
    other.load_adapter(tmp_path / "adapter", "policy")
    other.load_adapter(tmp_path / "values", "policy values")
    for name, states in expected.items():
        with other.using(name), torch.no_grad():
            assert_close(other.hidden(ids), states)
    assert not set(load_file(tmp_path / "adapter/adapter_model.safetensors")) & {"score.weight"}


def test_values_have_a_learning_rate_of_their_own_in_a_run(tmp_path):
    """The policy stands nearly still while the values learn; and the other way round."""
    home = asking.write_home(tmp_path)
    for value_lr, lr in ((1e-2, 1e-9), (1e-12, 1e-2)):
        stage = {"name": "ppo", "value_lr": value_lr, "max_new_tokens": 4}
        train = {"max_steps": 2, "lr": lr}
        run = graft.run(asking.recipe(home, tmp_path / f"{lr}", stage, train=train, data={"eval": None}))
        policy = load_file(run.adapter / "adapter_model.safetensors")
        values = load_file(run.folder / "values/adapter_model.safetensors")
        moved = max(float(t.abs().max()) for key, t in policy.items() if "lora_B" in key)  # zero when born
        (head,) = (float(t.abs().max()) for key, t in values.items())
        assert (head > 1e-3) == (value_lr > 1e-3) and (moved > 1e-3) == (lr > 1e-3)
    base = load(str(home / "model"), dtype="fp32")
    assert base.load_adapter(run.folder / "values", "values").head is not None
