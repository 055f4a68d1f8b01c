"""Adapters that were trained after the vocabulary grew: named with their rows, or read as PEFT reads them."""

import copy

import peft
import pytest
import torch
from peft_oracle import logits
from torch.testing import assert_close

from graft.base.base import Base
from graft.errors import AdapterError
from models import inputs, tiny_model

GROWN = 99  # of 96
CASES = {
    "both in full": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "table in full": {"modules_to_save": ["embed_tokens"]},
    "head in full": {"modules_to_save": ["lm_head"]},
    "lora on both": {"target_modules": ["q_proj", "embed_tokens", "lm_head"], "use_rslora": True},
    "lora on the table": {"target_modules": ["q_proj", "embed_tokens"], "alpha_pattern": {"embed_tokens": 9}},
    "rows": {"trainable_token_indices": [97, 98, 3]},
    "neither": {},
}


def ids():
    return torch.cat([inputs("llama")["ids"], torch.tensor([[96], [97], [98]])], 1)


def written(folder, changes, *, tied=False, save_tables=True):
    """Write an adapter of a model whose vocabulary has grown; return that model's logits."""
    model = tiny_model("llama", tie_word_embeddings=tied)
    torch.manual_seed(3)
    model.resize_token_embeddings(GROWN)
    config = peft.LoraConfig(
        **{"r": 2, "lora_alpha": 3, "target_modules": ["q_proj"], **copy.deepcopy(changes)}
    )
    model = peft.get_peft_model(model, config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    model.save_pretrained(folder, save_embedding_layers=save_tables)
    return model(input_ids=ids()).logits.detach()


@pytest.mark.parametrize("case", sorted(CASES.keys() - {"neither"}))
def test_the_error_names_the_rows_and_the_remedy(tmp_path, case):
    written(tmp_path, CASES[case])
    base = Base(tiny_model("llama"))
    with pytest.raises(
        AdapterError, match=r"has 99 rows .* 96 in the base.*grew by 3.*resize_token_embeddings\(99\)"
    ):
        base.load_adapter(tmp_path, "x")
    assert not base.adapters


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_after_the_remedy_it_answers_as_peft_and_travels_back(tmp_path, case, tied):
    wanted = written(tmp_path / "theirs", CASES[case], tied=tied)
    base = Base(tiny_model("llama", tie_word_embeddings=tied))
    base.model.resize_token_embeddings(GROWN)
    adapter = base.load_adapter(tmp_path / "theirs", "x")
    with base.using("x"):
        assert_close(base(ids()).logits, wanted, atol=1e-4, rtol=1e-4)
    adapter.save(tmp_path / "ours")
    again = peft.PeftModel.from_pretrained(copy.deepcopy(base.model), tmp_path / "ours").eval()
    assert_close(again(input_ids=ids()).logits, wanted, atol=1e-4, rtol=1e-4)


def test_a_vocabulary_that_shrank_is_said_to_have(tmp_path):
    written(tmp_path, CASES["both in full"])
    base = Base(tiny_model("llama", vocab_size=128))
    with pytest.raises(AdapterError, match=r"has 99 rows .* 128 in the base.*shrank by 29"):
        base.load_adapter(tmp_path, "x")


def test_copies_of_the_bases_own_tables_are_no_part_of_the_adapter(tmp_path):
    model = tiny_model("llama")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "embed_tokens"])
    tuned = peft.get_peft_model(copy.deepcopy(model), config).eval()
    tuned.save_pretrained(tmp_path, save_embedding_layers=True)
    base = Base(model)
    adapter = base.load_adapter(tmp_path, "x")
    assert not [key for key in adapter.file_state() if key.endswith("embed_tokens.weight")]
    with base.using("x"):
        assert_close(base(**inputs("llama")).logits, logits(tuned), atol=1e-5, rtol=1e-5)
