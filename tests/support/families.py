"""A tiny random model of every family of text models that the installed transformers has.

`families()` walks transformers' own tables of causal, masked and sequence-to-sequence models, so a family
that comes with its next release is in the list. One recipe makes them small: `SIZES` has a small value for
each name that configurations use for a size, lists that have an entry for each layer are cut so that every
kind of layer stays, and what is 1 by default but scales activations becomes another number. `EXCEPTIONS` has
what a few families need beyond that.

A family is left out, with its reason, if it reads something other than token ids (`why_not_text`); a family
that transformers itself cannot build or run here raises whatever transformers raises, in `build` or `inputs`.
"""

import functools
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from graft.models.load import quiet

VOCABULARY, LENGTH = 300, 12
SIZES: dict[int, str] = {
    VOCABULARY: """vocab_size src_vocab_size tgt_vocab_size decoder_vocab_size vocab_size_per_layer_input
        entity_vocab_size pronunciation_vocab_size shape_vocab_size unpadded_vocab_size
        encoder_hash_byte_group_vocab""",
    64: """hidden_size d_model n_embd dim emb_dim embedding_dim embedding_size input_embedding_size
        output_embedding_size word_embed_proj_dim prediction_head_size lru_width intra_bottleneck_size
        embedding_rank entity_emb_size mamba_d_ssm d_latents attention_hidden_size hidden_size_global
        pronunciation_embed_dim shape_embed_dim""",
    128: """intermediate_size encoder_ffn_dim decoder_ffn_dim ffn_dim dff d_ff d_inner dim_ff hidden_dim
        feed_forward_size ffn_hidden_size intermediate_size_mlp dense_intermediate_size
        max_position_embeddings n_positions n_ctx max_seq_len context_length rel_extent
        max_encoder_position_embeddings max_decoder_position_embeddings max_2d_position_embeddings
        original_max_position_embeddings""",
    32: """moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size
        shared_experts_intermediate_size moe_shared_expert_intermediate_size expert_ffn_hidden_size
        q_lora_rank o_lora_rank local_attn_chunk_length lsh_attn_chunk_length router_hidden_size
        hidden_size_per_layer_input ple_embed_dim index_head_dim prompt_mid_dim linear_head_dim qk_head_dim
        index_topk""",
    16: """head_dim v_head_dim qk_nope_head_dim d_kv d_head dim_head attention_head_size kv_channels
        kv_lora_rank state_size mamba_d_state ssm_state_size mamba_d_head mamba_head_dim linear_key_head_dim
        linear_value_head_dim swa_head_dim attention_head_dim time_step_rank mamba_dt_rank num_landmarks
        segment_means_seq_len adapter_rank gated_norm_rank laurel_rank num_latents chunk_size mamba_chunk_size
        block_size index_block_size hc_lowrank d_rel""",
    # Less than the length of the rows, so that windows hide something.
    8: """mamba_num_heads mamba_n_heads qk_rope_head_dim rotary_dim tpu_short_seq_length sliding_window
        attention_window_size sliding_window_size local_attention window_size keep_window_size local_radius
        local_attention_window_len attention_chunk_size global_block_size""",
    4: """num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads
        attention_heads num_encoder_attention_heads num_decoder_attention_heads linear_num_key_heads
        linear_num_value_heads linear_num_heads swa_num_attention_heads index_n_heads mamba_d_conv
        num_self_attention_heads num_cross_attention_heads num_experts num_local_experts n_routed_experts
        moe_num_experts zero_expert_num""",
    2: """num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_encoder_layers
        num_decoder_layers num_key_value_heads num_kv_heads swa_num_key_value_heads num_experts_per_tok
        moe_topk moe_k n_group topk_group decoder_sparse_step encoder_sparse_step num_sparse_encoder_layers
        num_sparse_decoder_layers num_blocks num_self_attends_per_block attn_layer_period expert_layer_period
        no_rope_layer_interval global_attn_every_n_layers moe_layer_end_index num_random_blocks num_hash
        heads_per_ngram sliding_window_pattern layer_group_size n_groups mamba_n_groups mamba_ngroups
        num_hashes index_topk_blocks num_global_tokens max_window_layers""",
    1: """first_k_dense_replace num_dense_layers attn_layer_offset expert_layer_offset n_shared_experts
        num_shared_experts moe_num_shared_experts moe_layer_start_index num_kv_shared_layers""",
}
SMALL = {name: size for size, names in SIZES.items() for name in names.split()}
# What scales activations and is 1 by default, as a model that forgets to apply it would not show.
SCALES = (
    "multiplier",
    "multipliers",
    "_scaling",
    "logit_scale",
    "scale_emb",
    "scale_depth",
    "scaling_factor",
)
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
# Settings that are None until a model is made of them, which the sizes above replace all the same.
NONE_IS_A_SIZE = {
    *("head_dim", "num_key_value_heads", "vocab_size"),
    *("n_routed_experts", "num_experts", "num_experts_per_tok", "n_shared_experts"),
}
LINEAR_AND_FULL = {"layer_types": ["linear_attention", "full_attention"]}
SLIDING_AND_FULL = {"num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 32, "kv_lora_rank": 16}
# What a family needs beyond sizes: mostly sums that its own checks ask for, and one layer of each kind.
EXCEPTIONS: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "bigbird_pegasus": {"attention_type": "original_full"},
    "big_bird": {"attention_type": "original_full"},
    "cohere_compass_text": {
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]}
        }
    },
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8.0}},
    "dots3_note_text": {
        "per_layer_config": {
            2: {**HEADS, "head_dim": 24, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16}
        },
        "num_hidden_layers": 3,
        "layer_types": ["indexed_attention", "indexed_attention", "sliding_attention"],
        "mlp_layer_types": ["dense", "sparse", "sparse"],
        **HEADS,
        "qk_nope_head_dim": 16,
    },
    "esm": {"pad_token_id": 0, "mask_token_id": 3},
    "esmc": {"num_key_value_heads": 4},
    "falcon_h1": {"mamba_d_ssm": 128},
    "fsmt": {"use_cache": False},  # with a cache transformers leaves the causal mask out
    "gemma3n_text": {
        **SLIDING_AND_FULL,
        "num_kv_shared_layers": 2,
        "intermediate_size": 128,
        "activation_sparsity_pattern": [0.95, 0.0, 0.0, 0.0],
    },
    "gemma4_text": {**SLIDING_AND_FULL, "num_kv_shared_layers": 2},
    "gemma4_unified_text": {**SLIDING_AND_FULL, "num_kv_shared_layers": 2},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": LINEAR_AND_FULL,
    "led": {"attention_window": [8, 8]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "longcat_flash": {"qk_head_dim": 24, "head_dim": 8},
    "longformer": {"attention_window": [8, 8]},
    "mamba2": {"num_heads": 8},
    "qwen4_exp_text": {
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 32,
        "indexer_compress_ratio": 2,
    },
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {"axial_pos_embds": False},
    "xlstm": {"hidden_size": 128, "embedding_dim": 128},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
    },
    "zaya": {"num_experts_per_tok": 1},
}


class Family(NamedTuple):
    """One class of models.  task: causal, masked, seq2seq or encoder, as `graft.load` has them."""

    model_type: str
    task: str

    def __str__(self) -> str:
        return f"{self.model_type}-plain" if self.task == "encoder" else self.model_type


@functools.cache
def families() -> dict[str, Family]:
    """Return the families by their names, sorted.

    A type that transformers has in several tables comes once, in its own form: an encoder-decoder as such,
    and an encoder as the masked model. Every masked model comes a second time without its head, as
    NAME-plain.
    """
    tables = {
        "causal": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        "masked": modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        "seq2seq": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    }
    task_of = {model_type: task for task, table in tables.items() for model_type in table}
    found = [Family(model_type, task) for model_type, task in task_of.items()]
    found += [
        Family(f.model_type, "encoder")
        for f in found
        if f.task == "masked" and f.model_type in modeling_auto.MODEL_MAPPING_NAMES
    ]
    return {str(family): family for family in sorted(found)}


def names() -> list[str]:
    """Return the names of all families that read text."""
    return [name for name in families() if why_not_text(name) is None]


def why_not_text(name: str) -> str | None:
    """Return why a family is left out, or None: it reads token ids only."""
    if families()[name].model_type == "mra":
        return "its attention answers with zeros where a kernel for GPUs is missing"
    config = CONFIG_MAPPING[families()[name].model_type]
    senses = ("vision", "audio", "vq", "acoustic", "speech", "image", "text_config")
    part = next((part for part in _parts(config) if any(sense in part for sense in senses)), None)
    if part is not None:
        return f"its configuration has {part}: a text model and others in one"
    heard = next((field for field in _fields(config) if field.startswith(("speech_", "num_mel_"))), None)
    return None if heard is None else f"its configuration has {heard}: it reads sound"


def build(name: str) -> torch.nn.Module:
    """Return a family's tiny model in fp32 and eval mode. The name decides its weights.

    Raises what transformers raises for a family that it cannot build here.
    """
    family = families()[name]
    config = small_config(family.model_type)
    mapping: Any = {
        "causal": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING,
        "masked": modeling_auto.MODEL_FOR_MASKED_LM_MAPPING,
        "seq2seq": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
        "encoder": modeling_auto.MODEL_MAPPING,
    }[family.task]
    cls = mapping[type(config)]
    cls = cls[0] if isinstance(cls, tuple) else cls
    with torch.random.fork_rng():
        torch.manual_seed(zlib.crc32(name.encode()))
        model = cls._from_config(config, dtype=torch.float32)
        _spread(model)
    return model.eval()


def save(name: str, folder: Path) -> torch.nn.Module:
    """Write a family's tiny model as transformers writes it, and return it."""
    model = build(name)
    with quiet():
        model.save_pretrained(folder)
    return model


def words() -> PreTrainedTokenizerFast:
    """Return a tokenizer in which "w7 w12" is [7, 12]. 0 is padding, 1 unknown; no token ends a text."""
    names = ["[pad]", "[unk]", *(f"w{i}" for i in range(2, VOCABULARY))]
    made = Tokenizer(WordLevel({name: i for i, name in enumerate(names)}, unk_token="[unk]"))
    made.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[pad]", unk_token="[unk]")


def inputs(model: Any, rows: int = 3, length: int = LENGTH, seed: int = 1) -> dict[str, torch.Tensor]:
    """Return the keywords of a plain forward without padding; nothing stands for a special token."""
    chance = torch.Generator().manual_seed(seed)
    given = {"input_ids": torch.randint(10, 250, (rows, length), generator=chance)}
    given["attention_mask"] = torch.ones_like(given["input_ids"])
    if model.config.is_encoder_decoder:
        given["decoder_input_ids"] = torch.randint(10, 250, (rows, 5), generator=chance)
    return given


def small_config(model_type: str) -> Any:
    """Return the configuration of a family's tiny model."""
    if model_type == "encoder-decoder":
        parts = {part: small_config("bert").to_dict() for part in ("encoder", "decoder")}
        parts["decoder"] |= {"is_decoder": True, "add_cross_attention": True}
        return CONFIG_MAPPING[model_type](**parts, **SPECIAL)
    made = _small(CONFIG_MAPPING[model_type], EXCEPTIONS.get(model_type, {}))
    family = families().get(model_type)
    if family is not None and family.task == "causal" and "is_decoder" in _fields(type(made)):
        made.is_decoder = True  # without it, a class that serves as both looks ahead
    return made


def _small(config: Any, more: dict[str, Any]) -> Any:
    """Return a configuration of this class with small sizes, and with `more` in place of what they say."""
    known = config()
    fields = list(_fields(config))
    chosen = {field: SMALL[field] for field in fields if field in SMALL}
    chosen |= {field: value for field, value in SPECIAL.items() if hasattr(known, field)}
    chosen |= {field: value for field in fields if (value := _rescaled(field, _value(known, field)))}
    chosen = {
        field: value
        for field, value in chosen.items()
        if _value(known, field) not in (None, -1) or field in NONE_IS_A_SIZE
    }
    if getattr(known, "is_encoder_decoder", False):
        chosen |= SPECIAL
    if "kv_lora_rank" in fields:  # each head has its keys, made from what all share
        chosen["num_key_value_heads"] = SMALL["num_attention_heads"]
    depth = _value(known, "num_hidden_layers")
    per_layer = {
        field: value
        for field in fields
        if isinstance(value := _value(known, field), (list, tuple)) and len(value) == depth > 2
    }
    kinds = {field: sorted(set(value), key=list(value).index) for field, value in per_layer.items()}
    layers = max([2, *(len(k) for k in kinds.values() if len(k) <= 6)])
    for field, kind in kinds.items():
        chosen[field] = [kind[i % len(kind)] for i in range(layers)]
    if per_layer:
        chosen |= {name: layers for name in ("num_hidden_layers",) if name in fields}
    parts = config.sub_configs or {}
    for part, cls in parts.items():
        if cls.__name__ != "AutoConfig" and _value(known, part) is not None:
            chosen[part] = _small(cls, more.get(part, {})).to_dict()
    return config(**{**chosen, **{field: value for field, value in more.items() if field not in parts}})


def _parts(config: Any) -> Iterator[str]:
    """Yield the names of the configurations inside this one, at any depth."""
    for part, cls in (config.sub_configs or {}).items():
        yield part
        yield from _parts(cls) if cls.__name__ != "AutoConfig" else ()


def _fields(config: Any) -> Iterator[str]:
    """Yield the names of a configuration's own settings."""
    return (name for name in config.__dataclass_fields__)


def _value(config: Any, field: str) -> Any:
    """Return a setting; None where layers have values of their own."""
    try:
        return getattr(config, field, None)
    except Exception:  # transformers raises an error of its own for what each layer has in its own way
        return None


def _rescaled(field: str, value: Any) -> Any:
    if not field.endswith(SCALES):
        return None
    if isinstance(value, (list, tuple)) and value and set(value) == {1.0}:
        return [0.7 + 0.1 * i for i in range(len(value))]
    return 0.8 if value == 1 and not isinstance(value, bool) else None


def _spread(model: torch.nn.Module) -> None:
    """Add random numbers to all that is saved, so that nothing is zero, symmetric or left out unnoticed."""
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.add_(torch.randn_like(tensor) * 0.05)
        saved = model.state_dict()
        for key, tensor in model.named_buffers():
            # Some zeros among other numbers are a mask: MiniMax's decay of later tokens.
            masks = 0 < tensor.count_nonzero() < tensor.numel()
            if key in saved and tensor.is_floating_point() and not masks:
                tensor.add_(torch.randn_like(tensor) * 0.05)
