"""P-tuning against PEFT: equal encoders give equal vectors, gradients and training; and its files."""

import copy

import peft
import pytest
import torch
from peft_oracle import tuned
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from graft.base.base import Base
from graft.errors import UsageError
from graft.methods.p_tuning import PTuning
from graft.methods.prompt import PromptTuning
from models import inputs, randomise, tiny_base, tiny_model

P, M = 4, 16
TASKS = {"llama": "CAUSAL_LM", "gpt2": "CAUSAL_LM", "bert": "FEATURE_EXTRACTION", "t5": "SEQ_2_SEQ_LM"}
KINDS = ("MLP", "LSTM")


def config(family, kind):
    settings = {"encoder_reparameterization_type": kind, "encoder_hidden_size": M}
    return peft.PromptEncoderConfig(task_type=TASKS[family], num_virtual_tokens=P, **settings)


def answer(model, family):
    batch = inputs(family)
    output = (
        model(batch.pop("ids"), **batch)
        if isinstance(model, Base)
        else model(input_ids=batch.pop("ids"), **batch)
    )
    return output[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", TASKS)
def test_files_travel_both_ways(tmp_path, family, kind):
    model = tiny_model(family, bare=family == "bert")
    front = 0 if family == "t5" else P
    wanted = answer(tuned(model, config(family, kind), tmp_path / "theirs"), family)[:, front:]
    base = Base(copy.deepcopy(model))
    adapter = base.load_adapter(tmp_path / "theirs", "x")
    assert isinstance(adapter.methods[0], PromptTuning)  # the encoder is not in the file
    with base.using("x"):
        assert_close(answer(base, family), wanted, atol=1e-5, rtol=1e-5)
    assert (answer(base, family) - wanted).abs().max() > 1e-2

    made = base.attach(
        "made", PTuning(num_virtual_tokens=P, encoder_reparameterization_type=kind, encoder_hidden_size=M)
    )
    randomise(made)
    made.save(tmp_path / "ours")
    assert load_file(tmp_path / "ours" / "adapter_model.safetensors").keys() == {"prompt_embeddings"}
    with base.using("made"):
        wanted = answer(base, family)
    again = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "ours").eval()
    assert again.peft_config["default"].peft_type == "P_TUNING"
    assert_close(answer(again, family)[:, front:], wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_and_training_are_those_of_peft(tmp_path, kind):
    model, ids = tiny_model("llama"), inputs("llama")["ids"]
    other = tuned(model, config("llama", kind), tmp_path).train()
    encoder = other.prompt_encoder["default"]
    base = Base(copy.deepcopy(model))
    adapter = base.attach(
        "x", PTuning(num_virtual_tokens=P, encoder_reparameterization_type=kind, encoder_hidden_size=M)
    )
    ((_, insert),) = adapter.inserts
    insert.load_state_dict(encoder.state_dict())
    base.train()
    optimizers = [torch.optim.SGD(list(ps), lr=0.05) for ps in (encoder.parameters(), insert.parameters())]
    for _ in range(3):
        with base.using("x"):
            logits = [other(input_ids=ids).logits[:, P:], base(ids).logits]
        losses = [cross_entropy(part[:, :-1].flatten(0, 1), ids[:, 1:].flatten()) for part in logits]
        for loss, optimizer in zip(losses, optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        wanted = {name: p.grad for name, p in encoder.named_parameters()}
        assert_close({name: p.grad for name, p in insert.named_parameters()}, wanted, atol=1e-5, rtol=1e-4)
    assert_close(insert.state_dict(), encoder.state_dict(), atol=1e-5, rtol=1e-4)


def test_dropout_between_the_layers_is_at_work_in_training_only():
    base, ids = tiny_base(), inputs("llama")["ids"]
    settings = {"encoder_reparameterization_type": "LSTM", "encoder_hidden_size": M, "encoder_dropout": 0.5}
    randomise(base.attach("x", PTuning(num_virtual_tokens=P, **settings)))
    with base.using("x"):
        assert torch.equal(base(ids).logits, base(ids).logits)
        base.train()
        assert not torch.equal(base(ids).logits, base(ids).logits)


def test_what_a_file_holds_takes_the_place_of_the_encoder():
    adapter = tiny_base().attach("x", PTuning(num_virtual_tokens=P))
    state = {key: value + 1 for key, value in adapter.file_state().items()}
    adapter.load_file_state(state)
    assert_close(adapter.file_state(), state)


def test_counts():
    """d 64, p 4, m 16: the table; three linears, or a two-way LSTM (8m(d+m+2), then 8m(3m+2)) and two."""
    count = lambda **settings: (
        tiny_base().attach("x", PTuning(num_virtual_tokens=P, encoder_hidden_size=M, **settings)).count()
    )
    assert count() == 4 * 64 + (64 * 16 + 16) + (16 * 16 + 16) + (16 * 64 + 64)
    lstm = 8 * 16 * (64 + 16 + 2) + 8 * 16 * (3 * 16 + 2)
    assert count(encoder_reparameterization_type="LSTM") == 4 * 64 + lstm + (32 * 32 + 32) + (32 * 64 + 64)
    assert tiny_base().attach("x", PTuning(num_virtual_tokens=P)).count() == 4 * 64 + 3 * (64 * 64 + 64)


@pytest.mark.parametrize(
    "settings",
    [
        {"encoder_reparameterization_type": "GRU"},
        {"encoder_hidden_size": -1},
        {"encoder_num_layers": 0},
        {"encoder_dropout": 1.0},
        {"num_virtual_tokens": 0},
    ],
)
def test_mistakes_are_named(settings):
    with pytest.raises(UsageError, match=str(next(iter(settings.values())))):
        PTuning(**settings)
