import pytest
import torch
from torch.testing import assert_close

from graft.base.base import Base
from graft.errors import AdapterError, UsageError
from graft.methods.full import Full
from graft.methods.subset import Subset
from graft.quant import quantise_model
from models import inputs, tiny_base, tiny_model


@pytest.mark.parametrize("checkpointed", [False, True])
def test_backward_stops_below_the_lowest_trained_block(checkpointed):
    base = tiny_base(num_hidden_layers=4)
    base.attach("x", Subset(top_layers=1))
    base.checkpointing(checkpointed)
    base.train()
    with base.using("x"):
        states = base(**inputs("llama"), output_hidden_states=True, use_cache=False).hidden_states
    assert [h.requires_grad for h in states] == [False, False, False, False, True]


def test_top_two_blocks_and_the_norm_behind_them_are_what_is_counted():
    base = tiny_base(num_hidden_layers=4)  # 2 (q, k, v, o + gate, up, down + two norms) + final norm, by hand
    block = 64 * 64 + 2 * 32 * 64 + 64 * 64 + 3 * 64 * 128 + 2 * 64
    assert base.attach("x", Subset(top_layers=2)).count() == 2 * block + 64


def test_modules_are_chosen_by_name():
    base = tiny_base()
    adapter = base.attach("x", Subset(top_layers=0, target_modules=("self_attn",)))
    assert {s.name.split(".")[-1] for s, _ in adapter.inserts} == {"q_proj", "k_proj", "v_proj", "o_proj"}


def test_nothing_to_train_is_an_error():
    with pytest.raises(UsageError, match="top_layers=0"):
        Subset(top_layers=0)


def test_packed_weights_refuse_to_be_trained_and_say_what_fits():
    base = Base(quantise_model(tiny_model("llama"), "nf4"))
    with pytest.raises(AdapterError, match="no gradient"):
        base.attach("x", Full())


def test_ten_full_steps_equal_training_the_model_itself():
    theirs, base, batch = tiny_model("llama"), tiny_base(), inputs("llama")
    base.faster(False)  # AdamW makes much of the last bits of small gradients
    theirs.requires_grad_(True)
    adapter = base.attach("x", Full())
    optimizers = [torch.optim.AdamW(ps, lr=1e-3) for ps in (theirs.parameters(), adapter.parameters())]
    for _ in range(10):
        with base.using("x"):
            losses = [
                theirs(batch["ids"], labels=batch["ids"]).loss,
                base(batch["ids"], labels=batch["ids"]).loss,
            ]
        for loss, optimizer in zip(losses, optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert_close(losses[1], losses[0], atol=1e-6, rtol=0)
    base.merge("x")
    for (name, mine), p in zip(base.model.named_parameters(), theirs.parameters(), strict=True):
        assert_close(mine.data, p.data, atol=1e-6, rtol=1e-5, msg=name)
