"""Published models without storage: their shapes count, exactly."""

import torch
from transformers.models.bert.configuration_bert import BertConfig
from transformers.models.bert.modeling_bert import BertModel
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaForCausalLM

from graft.base import Base


def llama_2_7b() -> Base:
    """6,738,415,616 parameters."""
    with torch.device("meta"):
        return Base(LlamaForCausalLM(LlamaConfig(intermediate_size=11008, num_hidden_layers=32)))


def bert_base() -> Base:
    """109,482,240 parameters, with the pooler."""
    with torch.device("meta"):
        return Base(BertModel(BertConfig()))
