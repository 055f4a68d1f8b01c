"""Trainable tokens: equal to PEFT's, tied and untied; other rows stay; rows of a batch use their own."""

import peft
import pytest
import torch
from peft_oracle import assert_files_travel_both_ways, assert_gradients_agree
from torch.testing import assert_close

from graft.base.base import Base
from graft.errors import UsageError
from graft.methods.lora import LoRA
from graft.methods.trainable_tokens import TrainableTokens
from models import inputs, randomise, tiny_base, tiny_model

CHOSEN = [41, 7, 88, 12, 60]  # in no order, some of them in the batch


@pytest.mark.parametrize("family", ["llama", "gemma", "gpt2", "t5", "opt"])
def test_files_travel_both_ways(tmp_path, family):
    ids = inputs(family)["ids"].flatten().unique().tolist()
    config = peft.TrainableTokensConfig(token_indices=[*ids[3:9][::-1], 1])
    assert_files_travel_both_ways(tiny_model(family), config, tmp_path, family)


@pytest.mark.parametrize("tied", [False, True])
def test_gradients_and_training_equal_pefts(tmp_path, tied):
    model = tiny_model("llama", tie_word_embeddings=tied)
    ids = inputs("llama")["ids"].flatten().unique().tolist()
    assert_gradients_agree(model, peft.TrainableTokensConfig(token_indices=ids[:6]), tmp_path)


@pytest.mark.parametrize("family", ["llama", "gemma", "gpt2", "bert"])
def test_a_merge_writes_the_rows_and_no_others(family):
    base, batch = Base(tiny_model(family).double()), inputs(family)
    batch["ids"][0, :5] = torch.tensor(CHOSEN)
    before = base.model.get_input_embeddings().weight.detach().clone()
    adapter = base.attach("x", TrainableTokens(token_indices=tuple(CHOSEN)))
    randomise(adapter)
    with base.using("x"):
        attached = base(**batch).logits
    base.merge("x")
    assert_close(base(**batch).logits, attached, atol=1e-12, rtol=1e-12)
    table = base.model.get_input_embeddings().weight
    others = [i for i in range(len(table)) if i not in CHOSEN]
    assert torch.equal(table[others], before[others])
    assert_close(table[CHOSEN].float(), adapter.parameters()[0])


def test_rows_of_a_batch_use_their_own_tokens():
    base, batch = tiny_base("gemma"), inputs("gemma")
    batch["ids"][:, :5] = torch.tensor(CHOSEN)
    for seed, name in enumerate("ab"):
        randomise(base.attach(name, TrainableTokens(token_indices=tuple(CHOSEN[seed:]))), seed)
    mixed = base(**batch, adapters=["b", None, "a"]).logits
    for row, name in enumerate(["b", None, "a"]):
        with base.using(name):
            assert_close(mixed[row], base(**batch).logits[row], atol=1e-5, rtol=1e-5)
    assert (mixed[2] - base(**batch).logits[2]).abs().max() > 1e-2


def test_a_whole_table_is_said_and_other_mistakes_are_refused():
    base = tiny_base()
    assert TrainableTokens().notice(base.attach("x", TrainableTokens()).parts[0]) is None  # 96 rows are few
    for ids in ((), (3, 3), (-1,), "some"):
        with pytest.raises(UsageError, match="token_indices"):
            TrainableTokens(token_indices=ids)
    with pytest.raises(UsageError, match="holds 96"):
        base.attach("y", TrainableTokens(token_indices=(1, 96)))


@pytest.mark.parametrize("family", ["gemma", "llama"])
def test_lora_on_a_table_that_scales_its_rows_merges_to_what_it_answered(tmp_path, family):
    base, batch = Base(tiny_model(family).double()), inputs(family)
    randomise(base.attach("x", LoRA(r=3, target_modules=("embed_tokens",))))
    with base.using("x"):
        attached = base(**batch).logits
    base.merge("x")
    assert_close(base(**batch).logits, attached, atol=1e-12, rtol=1e-12)
    assert_files_travel_both_ways(
        tiny_model(family), peft.LoraConfig(r=3, target_modules=["embed_tokens"]), tmp_path, family
    )
