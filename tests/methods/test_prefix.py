"""Prefix tuning against PEFT's cache of past keys; and what PEFT cannot do: packed and mixed rows."""

import copy
import json

import peft
import pytest
import torch
from peft_oracle import tuned
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from graft.base.base import Base
from graft.data.pack import packed
from graft.errors import AdapterError, UsageError
from graft.methods.lora import LoRA
from graft.methods.prefix import PrefixTuning
from models import ENCODERS, inputs, randomise, tiny_base, tiny_model

P = 4
FAMILIES = ["llama", "qwen3", "gemma2", "gpt2", "gpt_neox", "opt", "bert", "roberta"]
HOW = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}


def config(family, **settings):
    task = "FEATURE_EXTRACTION" if family in ENCODERS else "CAUSAL_LM"
    return peft.PrefixTuningConfig(task_type=task, num_virtual_tokens=P, **settings)


def answer(model, ids, **more):
    """States or logits, of PEFT's model or a base."""
    return model(ids, **more)[0] if isinstance(model, Base) else model(input_ids=ids, **more)[0]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_files_travel_both_ways(tmp_path, family, padded):
    model, ids = tiny_model(family, bare=family in ENCODERS), inputs(family)["ids"]
    mask = torch.ones_like(ids)
    mask[1, 4 if padded else 7 :] = 0
    wanted = answer(tuned(model, config(family), tmp_path / "theirs"), ids, attention_mask=mask)[mask.bool()]
    base = Base(copy.deepcopy(model))
    adapter = base.load_adapter(tmp_path / "theirs", "x")
    with base.using("x"):
        assert_close(answer(base, ids, attention_mask=mask)[mask.bool()], wanted, atol=1e-5, rtol=1e-5)
    assert (answer(base, ids, attention_mask=mask)[mask.bool()] - wanted).abs().max() > 1e-2
    adapter.save(tmp_path / "ours")
    again = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "ours").eval()
    assert_close(answer(again, ids, attention_mask=mask)[mask.bool()], wanted, atol=1e-5, rtol=1e-5)


def of_peft(encoder, adapter, layers=2):
    """Put the tensors of PEFT's projection into ours."""
    own = dict(adapter.named_parameters())
    part = lambda suffix: [p for key, p in own.items() if key.endswith(suffix)]
    first, last = encoder.transform[0], encoder.transform[2]
    with torch.no_grad():
        part("owned.E")[0].copy_(encoder.embedding.weight)
        part("W1.weight")[0].copy_(first.weight)
        part("W1.bias")[0].copy_(first.bias)
        for p, chunk in zip(part("W2.weight"), last.weight.chunk(layers), strict=True):
            p.copy_(chunk)
        for p, chunk in zip(part("W2.bias"), last.bias.chunk(layers), strict=True):
            p.copy_(chunk)
    return part


@pytest.mark.parametrize("projection", [False, True])
def test_gradients_and_training_are_those_of_peft(tmp_path, projection):
    model, ids = tiny_model("llama"), inputs("llama")["ids"]
    settings = config("llama", prefix_projection=projection, encoder_hidden_size=16)
    other = tuned(model, settings, tmp_path).train()
    encoder = other.prompt_encoder["default"]
    base = Base(copy.deepcopy(model))
    adapter = base.attach(
        "x", PrefixTuning(num_virtual_tokens=P, prefix_projection=projection, encoder_hidden_size=16)
    )
    if projection:
        part = of_peft(encoder, adapter)
    else:
        adapter.load_file_state({"prompt_embeddings": encoder.embedding.weight.detach()})
    base.train()
    optimizers = [torch.optim.SGD(list(ps), lr=0.5) for ps in (encoder.parameters(), adapter.parameters())]
    for _ in range(3):
        losses = [other(input_ids=ids, labels=ids).loss]
        with base.using("x"):
            losses.append(base(ids, labels=ids).loss)
        assert_close(*losses, atol=1e-6, rtol=1e-5)
        for loss, optimizer in zip(losses, optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if projection:
            for mine, theirs in (
                (part("owned.E"), encoder.embedding),
                (part("W2.weight"), encoder.transform[2]),
            ):
                assert_close(torch.cat([p.grad for p in mine]), theirs.weight.grad, atol=1e-6, rtol=1e-4)
    assert_close(adapter.file_state(), peft.get_peft_model_state_dict(other), atol=1e-5, rtol=1e-5)


def test_a_projection_is_left_behind(tmp_path):
    base, ids = tiny_base(), inputs("llama")["ids"]
    adapter = base.attach(
        "x", PrefixTuning(num_virtual_tokens=P, prefix_projection=True, encoder_hidden_size=16)
    )
    randomise(adapter)
    adapter.save(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["prefix_projection"] is False
    again = base.load_adapter(tmp_path, "y")
    assert again.count() == P * 2 * 2 * 32 < adapter.count()
    with base.using("x"):
        wanted = base(ids).logits
    with base.using("y"):
        assert_close(base(ids).logits, wanted, atol=1e-6, rtol=1e-6)
    state = {key: value + 1 for key, value in adapter.file_state().items()}
    adapter.load_file_state(state)  # also into the adapter that still has its projection
    assert_close(adapter.file_state(), state)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_generation_is_that_of_peft_with_and_without_cache(tmp_path, family):
    model, ids = tiny_model(family), inputs(family)["ids"]
    other = tuned(model, config(family), tmp_path)
    wanted = other.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **HOW)
    base = Base(copy.deepcopy(model))
    base.load_adapter(tmp_path, "x")
    for cache in (True, False):
        with torch.no_grad(), base.routed(["x"] * 3):
            out = base.model.generate(ids, attention_mask=torch.ones_like(ids), use_cache=cache, **HOW)
        assert torch.equal(out, wanted)


def test_rows_of_prefixes_loras_and_the_bare_base_are_generated_together():
    base, ids = tiny_base(), inputs("llama", rows=4)["ids"]
    randomise(base.attach("long", PrefixTuning(num_virtual_tokens=6)), 1)
    randomise(base.attach("short", PrefixTuning(num_virtual_tokens=2, shift_positions=False)), 2)
    randomise(base.attach("lora", LoRA(r=4)), 3)
    live = torch.ones_like(ids)
    live[0, :4], live[2, :2] = 0, 0
    rows = [None, "long", "lora", "short"]
    with torch.no_grad(), base.routed(rows) as order:
        assert order == [0, 1, 2, 3]
        mixed = base.model.generate(ids, attention_mask=live, **HOW)[:, 7:]
    for row, name in enumerate(rows):
        own = ids[row : row + 1, 7 - int(live[row].sum()) :]
        with torch.no_grad(), base.routed([name]):
            alone = base.model.generate(own, attention_mask=torch.ones_like(own), **HOW)[:, own.shape[1] :]
        assert torch.equal(alone[0], mixed[row])


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_positions_begin_behind_the_prefix_or_at_nought(family):
    base, ids = tiny_base(family), inputs(family)["ids"]
    answers = {}
    for shift in (True, False):
        torch.manual_seed(0)
        base.attach(str(shift), PrefixTuning(num_virtual_tokens=P, shift_positions=shift))
        with base.using(str(shift)):
            answers[shift] = base(ids).logits
    with base.using("False"):
        by_hand = base(ids, position_ids=torch.arange(P, P + 7)[None].expand(3, -1)).logits
    assert_close(by_hand, answers[True], atol=1e-5, rtol=1e-5)
    assert (answers[True] - answers[False]).abs().max() > 1e-2


def test_every_document_of_a_packed_row_sees_the_prefix():
    base, ids = tiny_base(), inputs("llama")["ids"]
    randomise(base.attach("x", PrefixTuning(num_virtual_tokens=P)))
    assert base.unpackable(32) is None
    batch, _ = packed(
        [[(ids[0].tolist(), ids[0].tolist()), (ids[1].tolist(), ids[1].tolist())]], pad=0, causal=True
    )
    with base.using("x"):
        together = base(**batch).logits[0]
        apart = base(ids[:2]).logits.flatten(0, 1)
    assert_close(together[:14], apart, atol=1e-5, rtol=1e-5)


def test_all_three_attentions_of_an_encoder_decoder_have_a_prefix(tmp_path):
    base, batch = tiny_base("t5"), inputs("t5")
    adapter = base.attach("x", PrefixTuning(num_virtual_tokens=P))
    assert len(adapter.inserts) == 2 + 2 * 2 and adapter.count() == 6 * P * 2 * 64
    randomise(adapter)
    with base.using("x"):
        loss = cross_entropy(base(**batch).logits.flatten(0, 1), batch["decoder_input_ids"].flatten())
    loss.backward()
    assert all(p.grad.abs().max() > 0 for p in adapter.parameters())
    with torch.no_grad(), base.routed(["x"] * 3):
        runs = [base.model.generate(batch["ids"], use_cache=cache, **HOW) for cache in (True, False)]
    assert torch.equal(*runs)
    tuned(tiny_model("t5"), peft.PrefixTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=P), tmp_path)
    with pytest.raises(AdapterError, match="prompt_embeddings: file"):
        base.load_adapter(tmp_path, "y")


def test_mistakes_are_named():
    with pytest.raises(UsageError, match="num_virtual_tokens=-1"):
        PrefixTuning(num_virtual_tokens=-1)
    with pytest.raises(UsageError, match="encoder_hidden_size=0"):
        PrefixTuning(encoder_hidden_size=0)
    with pytest.raises(UsageError, match="64 positions"):
        tiny_base().attach("x", PrefixTuning(num_virtual_tokens=64))
    base = tiny_base("gpt2")
    base.attach("x", PrefixTuning(num_virtual_tokens=60))
    with base.using("x"), pytest.raises(UsageError, match="67 positions"):
        base(inputs("gpt2")["ids"])
