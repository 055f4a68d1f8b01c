"""Settings of tiny mixtures of experts by family: `models.tiny_model(family, **MIXTURES[family])`."""

ATTENTION = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 96,
    "max_position_embeddings": 64,
    "num_experts_per_tok": 2,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
LATENT = {
    **ATTENTION,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "moe_intermediate_size": 16,
    "intermediate_size": 48,
    "first_k_dense_replace": 1,  # so that a dense block lies beside one of experts
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
MIXTURES = {
    "mixtral": {**ATTENTION, "intermediate_size": 48, "num_local_experts": 4},
    "qwen2_moe": {
        **ATTENTION,
        "intermediate_size": 48,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 24,
        "num_experts": 4,
    },
    "qwen3_moe": {
        **ATTENTION,
        "head_dim": 8,
        "intermediate_size": 48,
        "moe_intermediate_size": 16,
        "num_experts": 4,
    },
    "olmoe": {**ATTENTION, "intermediate_size": 16, "num_experts": 4},
    # matrices (in, out), with biases
    "gpt_oss": {
        **ATTENTION,
        "head_dim": 8,
        "intermediate_size": 16,
        "num_local_experts": 4,
        "sliding_window": 16,
    },
    "granitemoe": {**ATTENTION, "intermediate_size": 16, "num_local_experts": 4},
    "deepseek_v3": {**LATENT, "n_group": 2, "topk_group": 1},
    # outside of transformers' registry
    "jetmoe": {**ATTENTION, "kv_channels": 8, "intermediate_size": 16, "num_local_experts": 4},
}
REGISTERED = [family for family in MIXTURES if family != "jetmoe"]
EXPERTS = ("experts.gate_up_proj", "experts.down_proj")
