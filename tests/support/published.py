"""Published models without storage: their shapes count, exactly."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from transformers.models.bert.configuration_bert import BertConfig
from transformers.models.bert.modeling_bert import BertModel
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaForCausalLM
from transformers.models.opt.configuration_opt import OPTConfig
from transformers.models.opt.modeling_opt import OPTForCausalLM
from transformers.models.roberta.configuration_roberta import RobertaConfig
from transformers.models.roberta.modeling_roberta import RobertaForMaskedLM, RobertaModel
from transformers.models.t5.configuration_t5 import T5Config
from transformers.models.t5.modeling_t5 import T5ForConditionalGeneration

from graft.base.adapter import Adapter
from graft.base.base import Base
from graft.core.method import Method

LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "vocab_size": 50265,
}


def llama_2_7b() -> Base:
    """6,738,415,616 parameters."""
    return _shaped(LlamaForCausalLM, LlamaConfig(intermediate_size=11008, num_hidden_layers=32))


def llama_13b() -> Base:
    """13,015,864,320 parameters."""
    sizes = {
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
    }
    return _shaped(LlamaForCausalLM, LlamaConfig(**sizes))


def llama_33b() -> Base:
    """32,528,943,616 parameters."""
    sizes = {
        "hidden_size": 6656,
        "intermediate_size": 17920,
        "num_hidden_layers": 60,
        "num_attention_heads": 52,
    }
    return _shaped(LlamaForCausalLM, LlamaConfig(**sizes))


def llama_65b() -> Base:
    """65,285,660,672 parameters."""
    sizes = {
        "hidden_size": 8192,
        "intermediate_size": 22016,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
    }
    return _shaped(LlamaForCausalLM, LlamaConfig(**sizes))


def gpt3() -> Base:
    """GPT-3's 96 blocks of width 12,288, in the class of OPT-175B: the same with separate projections."""
    sizes = {"hidden_size": 12288, "num_hidden_layers": 96, "num_attention_heads": 96, "ffn_dim": 49152}
    return _shaped(OPTForCausalLM, OPTConfig(word_embed_proj_dim=12288, **sizes))


def bert_base() -> Base:
    """109,482,240 parameters, with the pooler."""
    return _shaped(BertModel, BertConfig())


def roberta_base() -> Base:
    """12 blocks of width 768."""
    return _shaped(RobertaModel, RobertaConfig(vocab_size=50265))


def roberta_large() -> Base:
    """24 blocks of width 1024."""
    return _shaped(RobertaModel, RobertaConfig(**LARGE))


def roberta_words() -> Base:
    """RoBERTa-large as the masked language model."""
    return _shaped(RobertaForMaskedLM, RobertaConfig(**LARGE))


def t5_base() -> Base:
    """222,903,552 parameters, as Compacter counts them: version 1.0, head and embeddings one table."""
    sizes = {"d_model": 768, "d_kv": 64, "num_heads": 12, "d_ff": 3072, "num_layers": 12}
    return _shaped(T5ForConditionalGeneration, T5Config(vocab_size=32128, **sizes))


def t0_3b() -> Base:
    """T5 1.1 of 3 B: gated feed-forward networks."""
    sizes = {"d_model": 2048, "d_kv": 64, "num_heads": 32, "d_ff": 5120, "num_layers": 24}
    config = T5Config(vocab_size=32128, feed_forward_proj="gated-gelu", tie_word_embeddings=False, **sizes)
    return _shaped(T5ForConditionalGeneration, config)


def _shaped(cls: Any, config: Any) -> Base:
    with torch.device("meta"):
        return Base(cls(config))


@functools.cache
def once(make: Callable[[], Base]) -> Base:
    """A shape that several tests count on."""
    return make()


def attached(make: Callable[[], Base], method: Method) -> Adapter:
    """The method on this shape, without storage as in a plan; the base serves the next test."""
    base = once(make)
    with torch.device("meta"):
        base.attach("x", method)
    return base.detach("x")
