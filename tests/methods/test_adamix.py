"""AdaMix: what training draws, what is averaged, what the files hold, and the agreement of the two passes."""

import json

import peft
import pytest
import torch
from largest import Largest
from torch.nn import functional as F
from torch.testing import assert_close

from graft.base.base import Base
from graft.data.feed import Batch
from graft.errors import UsageError
from graft.methods.adamix import AdaMix
from graft.methods.lora import LoRA
from graft.methods.pfeiffer import Pfeiffer
from graft.methods.task_head import TaskHead
from graft.objectives import classification, consistent, language_modelling, lm
from graft.training.step import measure
from models import inputs, randomise, tiny_base, tiny_model

SILENT = lambda mask: None


def batch(rows=3, length=7, seed=1):
    ids = inputs("llama", rows, length, seed)["ids"]
    labels = ids.clone()
    labels[0, :4] = -100
    return Batch({"input_ids": ids}, labels, int((labels[:, 1:] != -100).sum()), ["rows:0"])


def attached(method, family="llama", scale=0.2, dtype=torch.float32, **changes):
    base = Base(tiny_model(family, **changes).to(dtype))
    adapter = base.attach("x", method)
    randomise(adapter, scale=scale)
    return base, adapter


def test_training_uses_one_expert_of_each_side_drawn_independently():
    _, adapter = attached(AdaMix(num_experts=3, share="none", dropout=0.0))
    insert = adapter.inserts[0][1].train()
    u, (down, up) = torch.randn(2, 5, 64), (insert.down, insert.up)
    every = {
        (i, j): F.gelu(u @ down.weight[i].T + down.bias[i]) @ up.weight[j].T + up.bias[j]
        for i in range(3) for j in range(3)
    }  # fmt: skip
    torch.manual_seed(0)
    found = []
    for _ in range(200):
        update = insert.delta(u)
        found += [pair for pair, wanted in every.items() if torch.allclose(update, wanted, atol=1e-6)]
    assert len(found) == 200 and set(found) == set(every)
    assert min(found.count(pair) for pair in every) > 8  # 22 each in the mean


@pytest.mark.parametrize(
    "settings", [{}, {"share": "down"}, {"host": "lora"}, {"host": "lora", "share": "none"}]
)
def test_the_average_of_the_weights_answers_not_that_of_the_outputs(settings):
    base, adapter = attached(AdaMix(**settings))
    host = base.attach("y", adapter.methods[0].hosted())
    for (_, mixed), (_, single) in zip(adapter.inserts, host.inserts, strict=True):
        averages = {name: p.mean(0) for name, p in mixed.named_parameters()}
        single.load_state_dict(averages)
    with torch.no_grad():
        answers = [base(inputs("llama")["ids"], adapters=[name] * 3).logits for name in ("x", "y", None)]
    assert torch.equal(answers[0], answers[1]) and (answers[0] - answers[2]).abs().max() > 1e-2


def test_the_file_of_the_lora_host_is_a_lora_that_peft_loads_and_merges(tmp_path):
    method = AdaMix(host="lora", target_modules=("q_proj", "down_proj"), lora_alpha=8)
    base, adapter = attached(method)
    ids = inputs("llama")["ids"]
    with base.using("x"), torch.no_grad():
        ours = base(ids).logits
    base.train()  # files hold averages also while experts are drawn
    adapter.save(tmp_path)
    base.train(False)
    theirs = peft.PeftModel.from_pretrained(tiny_model("llama"), tmp_path).eval()
    assert_close(theirs(input_ids=ids).logits, ours, atol=1e-5, rtol=1e-5)
    again = tiny_base()
    assert type(again.load_adapter(tmp_path, "y").methods[0]) is LoRA
    base.merge("x")
    assert_close(base(ids).logits, ours, atol=2e-5, rtol=1e-4)


def test_the_file_of_the_adapter_host_is_one_of_pfeiffer(tmp_path):
    _, adapter = attached(AdaMix(m=6), "bert")
    adapter.save(tmp_path)
    loaded = tiny_base("bert").load_adapter(tmp_path, "y")
    assert loaded.methods[0] == Pfeiffer(m=6, non_linearity="gelu")
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == Pfeiffer.files.peft_type
    assert (
        len(adapter.checkpoint_state()) == len(loaded.checkpoint_state())
        and adapter.count() > 2 * loaded.count()
    )


def agreement_by_hand(base, found, weight):
    """½(CE₁ + CE₂) + weight · ½(KL + KL) from full logits, with the draws of one generator state."""
    with base.using("x"):
        first, second = (base(found.inputs["input_ids"]).logits[:, :-1] for _ in range(2))
    labels = found.labels[:, 1:]
    live = labels != -100
    log_p, log_q = first[live].log_softmax(-1), second[live].log_softmax(-1)
    nll = (
        F.nll_loss(log_p, labels[live], reduction="sum") + F.nll_loss(log_q, labels[live], reduction="sum")
    ) / 2
    forward = F.kl_div(log_q, log_p, reduction="sum", log_target=True)  # KL(p‖q)
    backward = F.kl_div(log_p, log_q, reduction="sum", log_target=True)
    assert forward > 0.01, "both passes drew the same"
    return nll + weight * (forward + backward) / 2


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("settings", [{"init_weights": "bert"}, {"host": "lora", "lora_dropout": 0.3}])
def test_a_step_adds_the_symmetric_divergence_of_two_passes(settings, checkpointing):
    base, adapter = attached(
        AdaMix(consistency=0.7, share="none", **settings), scale=0.5, dtype=torch.float64
    )
    base.train()
    found = batch()
    torch.manual_seed(5)
    wanted = agreement_by_hand(base, found, 0.7) / found.tokens
    wanted.backward()
    gradients = [p.grad.clone() for p in adapter.parameters()]
    base.checkpointing(checkpointing)
    torch.manual_seed(5)
    with base.using("x"):
        measured = measure(base, adapter, language_modelling, [found], SILENT)
    assert abs(measured.loss - float(wanted)) < 1e-4
    for p, gradient in zip(adapter.parameters(), gradients, strict=True):
        assert_close(p.grad, gradient, atol=1e-5, rtol=1e-4)


def test_without_consistency_the_losses_of_two_passes_are_averaged():
    base, adapter = attached(AdaMix(consistency=0.0, share="none"), scale=0.5)
    base.train()
    found = batch()
    torch.manual_seed(5)
    wanted = float(agreement_by_hand(base, found, 0.0)) / found.tokens
    torch.manual_seed(5)
    with base.using("x"):
        assert abs(measure(base, adapter, language_modelling, [found], SILENT).loss - wanted) < 1e-4


def test_full_logits_of_neither_pass_exist(monkeypatch):
    monkeypatch.setattr(lm, "CHUNK", 128)
    base, adapter = attached(AdaMix(), vocab_size=2000)
    base.train()
    found = batch(rows=2, length=300)
    with base.using("x"), Largest() as largest:
        measure(base, adapter, language_modelling, [found], SILENT)
    assert largest.seen <= 2 * 128 * 2000 < found.tokens * 2000


def test_classes_agree_too():
    base = Base(tiny_model("llama"))
    adapter = base.attach("x", [AdaMix(consistency=0.5, init_weights="bert"), TaskHead(num_labels=3)])
    randomise(adapter, scale=0.5)
    base.train()
    found = Batch(inputs("llama"), torch.tensor([0, 2, 1]), 3, [])
    found.inputs["input_ids"] = found.inputs.pop("ids")
    torch.manual_seed(5)
    with base.using("x"):
        first, second = (base(found.inputs["input_ids"])[0] for _ in range(2))
        p, q = first.softmax(-1), second.softmax(-1)
        kl = ((p * (p / q).log()).sum() + (q * (q / p).log()).sum()) / 2
        nll = sum(F.cross_entropy(logits, found.labels, reduction="sum") for logits in (first, second)) / 2
        torch.manual_seed(5)
        measured = measure(base, adapter, classification, [found], SILENT)
    assert kl > 1e-3 and abs(3 * measured.loss - float(nll + 0.5 * kl)) < 1e-4


def test_an_objective_without_such_a_form_is_named():
    def ranking(base, batch): ...

    with pytest.raises(UsageError, match="ranking"):
        consistent(ranking)


@pytest.mark.parametrize(
    "settings", [{"host": "krona"}, {"share": "both"}, {"num_experts": 0}, {"r": 0, "host": "lora"}]
)
def test_settings_that_mean_nothing_are_refused(settings):
    with pytest.raises(UsageError):
        AdaMix(**settings)
