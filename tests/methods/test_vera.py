"""VeRA's shared projections: PEFT's numbers, one copy everywhere, taken from the file where it has them."""

import copy

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from graft.base.base import Base
from graft.errors import AdapterError
from graft.methods.lora import LoRA
from graft.methods.vera import Vectors, VeRA
from models import inputs, randomise, tiny_base, tiny_model

A, B = "base_model.vera_A", "base_model.vera_B"


@pytest.mark.parametrize("seed", [0, 11])
def test_the_projections_are_those_that_peft_draws_from_the_same_seed(seed):
    config = peft.VeraConfig(r=12, projection_prng_key=seed, target_modules=["q_proj", "down_proj"])
    reference = peft.get_peft_model_state_dict(peft.get_peft_model(tiny_model("llama"), config))
    ours = (
        tiny_base()
        .attach("x", VeRA(r=12, projection_prng_key=seed, target_modules=("q_proj", "down_proj")))
        .file_state()
    )
    assert ours[A].shape == (12, 128) and ours[B].shape == (64, 12)
    assert torch.equal(ours[A], reference[A]) and torch.equal(ours[B], reference[B])


def test_checkpoints_and_memory_hold_the_projections_once():
    adapter = tiny_base().attach("x", VeRA(r=12))
    for _, insert in adapter.inserts:
        insert.to(torch.device("cpu"), torch.float64)  # as a move to another device does: the owner moves all
    shared = {insert._borrowed[0].A.data_ptr() for _, insert in adapter.inserts}
    assert len(shared) == 1 and all(
        insert._borrowed[0].A.dtype == torch.float64 for _, insert in adapter.inserts
    )
    assert sum(key.endswith((".A", ".B")) for key in adapter.checkpoint_state()) == 2


def test_projections_of_the_file_are_used_even_if_the_seed_says_otherwise(tmp_path):
    model, batch = tiny_model("llama"), inputs("llama")
    base = Base(copy.deepcopy(model))
    randomise(base.attach("x", VeRA(r=12)))
    base.adapters["x"].save(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors[A] = tensors[A].flip(0) * 2  # another machine's generator
    save_file(tensors, path)
    base.load_adapter(tmp_path, "foreign")
    with base.using("x"):
        own = base(**batch).logits
    with base.using("foreign"):
        ours = base(**batch).logits
    tuned = peft.PeftModel.from_pretrained(model, tmp_path)
    assert_close(ours, tuned(input_ids=batch["ids"]).logits, atol=1e-5, rtol=1e-5)
    assert (ours - own).abs().max() > 1e-2


def test_without_projections_the_file_holds_two_vectors_per_site_and_the_seed_is_enough(tmp_path):
    base, batch = tiny_base(), inputs("llama")
    randomise(base.attach("x", VeRA(r=12, save_projection=False, projection_prng_key=3)))
    base.adapters["x"].save(tmp_path)
    assert {key.rpartition(".")[2] for key in load_file(tmp_path / "adapter_model.safetensors")} == {
        "vera_lambda_b", "vera_lambda_d",
    }  # fmt: skip
    base.load_adapter(tmp_path, "y")
    answers = []
    for name in "xy":
        with base.using(name):
            answers.append(base(**batch).logits)
    assert torch.equal(*answers)


def test_a_file_that_promises_projections_and_lacks_them_is_named(tmp_path):
    base = tiny_base()
    base.attach("x", VeRA(r=12)).save(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    save_file({k: v for k, v in load_file(path).items() if k != A}, path)
    with pytest.raises(AdapterError, match=r"base_model\.vera_A: not in the file"):
        base.load_adapter(tmp_path, "y")


def test_two_veras_in_one_adapter_keep_their_own_projections(tmp_path):
    base, batch = tiny_base(), inputs("llama")
    methods = [VeRA(r=6, target_modules=("q_proj",)), LoRA(r=2), VeRA(r=9, projection_prng_key=1)]
    randomise(base.attach("x", methods))
    base.adapters["x"].save(tmp_path)
    base.load_adapter(tmp_path, "y")
    ranks = {i._borrowed[0].A.shape[0] for _, i in base.adapters["y"].inserts if isinstance(i, Vectors)}
    with base.using("x"):
        wanted = base(**batch).logits
    with base.using("y"):
        assert torch.equal(base(**batch).logits, wanted) and ranks == {6, 9}
