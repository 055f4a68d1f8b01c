import pytest
import torch
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel, T5Config

from graft.core.positions import context_length

SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}


@pytest.mark.parametrize("config, cls", [(BertConfig, BertModel), (RobertaConfig, RobertaModel)])
def test_a_row_of_the_context_length_runs_and_a_longer_one_does_not(config, cls):
    model = cls(config(vocab_size=20, max_position_embeddings=12, **SIZES))
    length = context_length(model.config)
    model(torch.full((1, length), 5))
    with pytest.raises((IndexError, RuntimeError)):
        model(torch.full((1, length + 1), 5))


def test_relative_positions_have_no_end():
    assert context_length(T5Config()) is None
