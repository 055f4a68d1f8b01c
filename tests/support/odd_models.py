"""Settings of tiny models whose blocks are unlike Llama's: states, experts, attention of their own."""

from graft.base.base import Base
from models import LLAMA, SMALL, tiny_model

HYBRID = {
    **LLAMA, "head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16,
    "linear_value_head_dim": 16, "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
HEADS = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
BART = {
    "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128,
    "vocab_size": 96, "max_position_embeddings": 64, **HEADS,
}  # fmt: skip
T5 = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "vocab_size": 96}
ODD = {
    "albert": {**SMALL, "embedding_size": 64, "max_position_embeddings": 64},
    "bart": BART,
    "bloom": {"hidden_size": 64, "n_head": 4, "n_layer": 2, "vocab_size": 96},
    "deberta-v2": {
        **SMALL, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "max_position_embeddings": 64,
        "position_buckets": 16,
    },
    "deepseek_v2": {
        **LLAMA, "num_key_value_heads": 4, "q_lora_rank": None, "kv_lora_rank": 16, "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8, "v_head_dim": 16, "first_k_dense_replace": 2, "n_routed_experts": 4,
    },
    "gptj": {"n_embd": 64, "n_head": 4, "n_layer": 2, "vocab_size": 96, "rotary_dim": 8, "n_positions": 64},
    "llama4_text": {
        **LLAMA, "head_dim": 16, "intermediate_size_mlp": 128, "num_local_experts": 4, "pad_token_id": 0,
        "attention_chunk_size": 32,
    },
    "longt5": {**T5, "local_radius": 4, "decoder_start_token_id": 0},
    "mamba": {"hidden_size": 64, "state_size": 8, "num_hidden_layers": 2, "vocab_size": 96},
    "mistral": {**LLAMA, "sliding_window": 8},
    "mpt": {"d_model": 64, "n_heads": 4, "n_layers": 2, "vocab_size": 96, "max_seq_len": 64},
    "qwen2_moe": {
        **LLAMA, **EXPERTS, "shared_expert_intermediate_size": 32, "decoder_sparse_step": 1,
    },
    "qwen3_next": {**HYBRID, **EXPERTS, "shared_expert_intermediate_size": 32, "mlp_only_layers": [0, 1]},
    "rwkv": {
        "hidden_size": 64, "attention_hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 96,
        "intermediate_size": 128, "context_length": 64,
    },
    "switch_transformers": {
        **T5, "num_experts": 4, "decoder_start_token_id": 0, "num_sparse_encoder_layers": 1,
        "num_sparse_decoder_layers": 1, "expert_capacity": 64,
    },
    "xlnet": {"d_model": 64, "n_layer": 2, "n_head": 4, "d_inner": 128, "vocab_size": 96},
    "zamba2": {
        "vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 4, "intermediate_size": 128,
        "layers_block_type": ["linear_attention", "hybrid"] * 2, "num_attention_heads": 4,
        "num_key_value_heads": 4, "attention_head_dim": 32, "mamba_d_state": 16, "mamba_d_conv": 4,
        "n_mamba_heads": 8, "mamba_ngroups": 1, "num_mem_blocks": 1, "adapter_rank": 4,
        "max_position_embeddings": 64, "hybrid_layer_ids": [1, 3],
    },
}  # fmt: skip


def odd_base(family: str, **changes: object) -> Base:
    """Return a base of a family in ODD, with these entries of its configuration changed."""
    return Base(tiny_model(family, **{**ODD[family], **changes}), name=f"tiny-{family}")
