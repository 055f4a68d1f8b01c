"""Published models without storage: their shapes count, exactly."""

import torch
from transformers.models.bert.configuration_bert import BertConfig
from transformers.models.bert.modeling_bert import BertModel
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaForCausalLM
from transformers.models.roberta.configuration_roberta import RobertaConfig
from transformers.models.roberta.modeling_roberta import RobertaModel
from transformers.models.t5.configuration_t5 import T5Config
from transformers.models.t5.modeling_t5 import T5ForConditionalGeneration

from graft.base import Base


def llama_2_7b() -> Base:
    """6,738,415,616 parameters."""
    with torch.device("meta"):
        return Base(LlamaForCausalLM(LlamaConfig(intermediate_size=11008, num_hidden_layers=32)))


def bert_base() -> Base:
    """109,482,240 parameters, with the pooler."""
    with torch.device("meta"):
        return Base(BertModel(BertConfig()))


def t5_base() -> Base:
    """222,903,552 parameters, as Compacter counts them: version 1.0, head and embeddings one table."""
    config = T5Config(d_model=768, d_kv=64, num_heads=12, d_ff=3072, num_layers=12, vocab_size=32128)
    with torch.device("meta"):
        return Base(T5ForConditionalGeneration(config))


def roberta_large() -> Base:
    """24 blocks of width 1024."""
    config = RobertaConfig(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096, vocab_size=50265
    )
    with torch.device("meta"):
        return Base(RobertaModel(config))
