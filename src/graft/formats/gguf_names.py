"""Translate a model between transformers and GGUF: the names of its tensors, its settings, its layouts.

    q_proj, k_proj of `llama`   rows of each head from (2, half) to (half, 2): llama.cpp turns neighbours
    norms of Gemma              1 + w, where transformers keeps w and adds 1
    rope_type llama3            a tensor rope_freqs.weight: what each frequency is divided by

Only what llama.cpp computes as transformers does is named here; a setting that it fixes differently is
refused. Names follow the `gguf` package (tensor_mapping.py), conversions llama.cpp's convert_hf_to_gguf.py.
"""

import math
import re
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from graft.errors import ModelError, UsageError

ROPE_FACTORS = "rope_freqs.weight"
TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
BLOCK = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
TWO_NORMS = {"post_attention_layernorm": "ffn_norm"}
FOUR_NORMS = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
HEAD_NORMS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
# setting of the file (after the architecture's name and a dot) -> attribute of transformers' config
SETTINGS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "vocab_size": "vocab_size",
}
CAPS = {
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "attention.sliding_window": "sliding_window",
}
GELU = "gelu_pytorch_tanh"


@dataclass(frozen=True)
class Architecture:
    """How llama.cpp names and stores one family of models.

    name: in files.  norms: names of a block's norms besides the first.  pairs, raised: see above.  biases:
    parts of a block that may have one, None for any.  head: whether its head may differ from the table.
    period: every which layer sees the whole text, while the others see a window.
    """

    name: str
    norms: dict[str, str] = field(default_factory=lambda: TWO_NORMS)
    settings: dict[str, str] = field(default_factory=dict)
    activation: str = "silu"
    pairs: bool = False
    raised: bool = False
    biases: tuple[str, ...] | None = ()
    head: bool = True
    period: int = 0

    @property
    def block(self) -> dict[str, str]:
        return BLOCK | self.norms


LLAMA = Architecture("llama", pairs=True, biases=None)
ARCHITECTURES = {  # model_type of transformers -> architecture; reading takes the first of a name
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": Architecture("qwen2", biases=("attn_q", "attn_k", "attn_v")),
    "qwen3": Architecture("qwen3", TWO_NORMS | HEAD_NORMS),
    "gemma": Architecture("gemma", activation=GELU, raised=True, head=False),
    "gemma2": Architecture("gemma2", FOUR_NORMS, CAPS, GELU, raised=True, head=False, period=2),
    "gemma3_text": Architecture(
        "gemma3",
        FOUR_NORMS | HEAD_NORMS,
        {"attention.sliding_window": "sliding_window"},
        GELU,
        raised=True,
        period=6,
    ),
}


def architecture(config: Any) -> Architecture:
    """Return how llama.cpp names and stores a model. Raises UsageError if it would compute it differently."""
    arch = ARCHITECTURES.get(config.model_type)
    if arch is None:
        raise UsageError(
            f"a {config.model_type} model as GGUF",
            f"one of {', '.join(ARCHITECTURES)}",
            "export it with to='hf'",
        )
    for wrong in _differences(arch, config):
        raise UsageError(
            f"{config.model_type} with {wrong}", "what llama.cpp computes", "export it with to='hf'"
        )
    return arch


def settings(config: Any) -> dict[str, Any]:
    """Return the settings of the file, each under the architecture's name."""
    arch = architecture(config)
    values = {key: getattr(config, name, None) for key, name in (SETTINGS | arch.settings).items()}
    head_dim = values["attention.key_length"] or config.hidden_size // config.num_attention_heads
    values |= {
        key: head_dim for key in ("attention.key_length", "attention.value_length", "rope.dimension_count")
    }
    window = getattr(config, "sliding_window", None)
    if not arch.period and window:  # Mistral's: llama.cpp sees everything, which is the same up to the window
        values["context_length"] = min(config.max_position_embeddings, window)
    rope = _rope(config)
    values["rope.freq_base"] = float(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        values |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope["factor"])}
    if "sliding_attention" in config.rope_parameters:
        values["rope.freq_base_swa"] = float(config.rope_parameters["sliding_attention"]["rope_theta"])
    return {f"{arch.name}.{key}": value for key, value in values.items() if value is not None}


def config_from(keys: dict[str, Any], tensors: dict[str, Any]) -> dict[str, Any]:
    """Return keywords of transformers' config, model_type among them, from a file's keys and tensors."""
    name = keys.get("general.architecture")
    model_type = next((kind for kind, arch in ARCHITECTURES.items() if arch.name == name), None)
    if model_type is None:
        known = dict.fromkeys(arch.name for arch in ARCHITECTURES.values())
        raise ModelError(f"architecture {name!r}", f"one of {', '.join(known)}", "load the original model")
    arch = ARCHITECTURES[model_type]
    named = (SETTINGS | arch.settings).items()
    values: dict[str, Any] = {setting: keys.get(f"{name}.{key}") for key, setting in named}
    lacking = [key for key in ("hidden_size", "num_hidden_layers", "num_attention_heads") if not values[key]]
    if lacking:
        raise ModelError(f"a GGUF file without {lacking[0]}", "the values of a model", "download it again")
    values["vocab_size"] = values["vocab_size"] or len(keys.get("tokenizer.ggml.tokens", ()))
    values["head_dim"] = values["head_dim"] or values["hidden_size"] // values["num_attention_heads"]
    values |= {"hidden_act": arch.activation, "tie_word_embeddings": "output.weight" not in tensors}
    if arch.activation == GELU:
        values |= {"hidden_activation": GELU, "query_pre_attn_scalar": values["head_dim"]}
    if arch.biases is None:
        values |= {
            "attention_bias": "blk.0.attn_q.bias" in tensors,
            "mlp_bias": "blk.0.ffn_up.bias" in tensors,
        }
    values["rope_parameters"] = _rope_parameters(
        keys, f"{name}.rope.", values["head_dim"], tensors.get(ROPE_FACTORS)
    )
    ids = {
        f"{which}_token_id": keys.get(f"tokenizer.ggml.{long}_token_id") for which, long in SPECIAL.items()
    }
    return {
        "model_type": model_type,
        **{key: value for key, value in (values | ids).items() if value is not None},
    }


SPECIAL = {"bos": "bos", "eos": "eos", "pad": "padding"}


def file_name(key: str, arch: Architecture) -> str:
    """Return the name in the file of a tensor of transformers' state. Raises UsageError if it has none."""
    module, _, kind = key.rpartition(".")
    found = TOP.get(module) if kind == "weight" else None
    inside = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", module)
    if inside and inside[2] in arch.block:
        part = arch.block[inside[2]]
        if kind == "weight" or (kind == "bias" and (arch.biases is None or part in arch.biases)):
            found = f"blk.{inside[1]}.{part}"
    if found is None or (found == "output" and not arch.head):
        raise UsageError(
            f"{key}, for which llama.cpp's {arch.name} has no place", "its tensors", "export with to='hf'"
        )
    return f"{found}.{kind}"


def state_name(name: str, arch: Architecture) -> str | None:
    """Return the inverse of `file_name`; None for tensors that transformers does not keep."""
    module, _, kind = name.rpartition(".")
    inside = re.fullmatch(r"blk\.(\d+)\.(.+)", module)
    if inside:
        own = {part: path for path, part in arch.block.items()}.get(inside[2])
        return own and f"model.layers.{inside[1]}.{own}.{kind}"
    own = {part: path for path, part in TOP.items()}.get(module)
    return own and f"{own}.{kind}"


def to_file(tensor: Tensor, name: str, arch: Architecture, config: Any) -> Tensor:
    """Return the values that llama.cpp expects under this name."""
    heads = _paired_heads(name, arch, config)
    if heads:
        return tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
    return tensor.float() + 1 if arch.raised and name.endswith("norm.weight") else tensor


def from_file(tensor: Tensor, name: str, arch: Architecture, config: Any) -> Tensor:
    """Return the inverse of `to_file`."""
    heads = _paired_heads(name, arch, config)
    if heads:
        return tensor.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)
    return tensor.float() - 1 if arch.raised and name.endswith("norm.weight") else tensor


def rope_factors(config: Any) -> Tensor | None:
    """Return what each rotary frequency is divided by (head_dim / 2,); None if it is one number for all."""
    rope = _rope(config)
    if rope["rope_type"] != "llama3":
        return None
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return _llama3(size, rope)


def _paired_heads(name: str, arch: Architecture, config: Any) -> int:
    """Return the number of heads whose rows change their order; 0 for a tensor that keeps it."""
    if arch.pairs and ".attn_q." in name:
        return int(config.num_attention_heads)
    return int(config.num_key_value_heads) if arch.pairs and ".attn_k." in name else 0


def _rope(config: Any) -> dict[str, Any]:
    """Return the rotary settings of layers that see the whole text."""
    found = config.rope_parameters
    return dict(found.get("full_attention", found))


def _differences(arch: Architecture, config: Any) -> list[str]:
    """Return the settings that llama.cpp would not follow, as `name value`."""
    act = getattr(config, "hidden_activation", None) or config.hidden_act
    rope = _rope(config)["rope_type"]
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    scalar = getattr(config, "query_pre_attn_scalar", None)
    kinds = getattr(config, "layer_types", None) if arch.period or arch.name.startswith("qwen") else None
    windows = [bool(arch.period and (i + 1) % arch.period) for i in range(config.num_hidden_layers)]
    return [
        *([f"hidden_act {act}"] if act != arch.activation else []),
        *([f"rope_type {rope}"] if rope not in ("default", "linear", "llama3") else []),
        *([f"query_pre_attn_scalar {scalar}"] if arch.period and scalar != head_dim else []),
        *(["these layer_types"] if kinds and [k == "sliding_attention" for k in kinds] != windows else []),
    ]


def _rope_parameters(keys: dict[str, Any], prefix: str, head_dim: int, factors: Any) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_theta": keys.get(prefix + "freq_base", 10000.0), "rope_type": "default"}
    scaling = keys.get(prefix + "scaling.type", "none")
    if scaling == "linear":
        rope |= {"rope_type": "linear", "factor": keys[prefix + "scaling.factor"]}
    elif scaling != "none":
        raise ModelError(f"rotary scaling {scaling}", "none, linear or llama3", "load the original model")
    if factors is not None:
        factors = factors[...]
        rope |= {
            "rope_type": "llama3",
            "factor": float(factors.max()),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
        }
        # All published models have this; the file does not say.
        rope["original_max_position_embeddings"] = 8192
        if not torch.allclose(_llama3(head_dim, rope), factors.float().flatten(), rtol=1e-4):
            raise ModelError(
                f"{ROPE_FACTORS} of an unknown kind", "that of Llama 3", "load the original model"
            )
    if prefix != "gemma3.rope.":
        return rope
    window = {"rope_theta": keys.get(prefix + "freq_base_swa", 10000.0), "rope_type": "default"}
    return {"full_attention": rope, "sliding_attention": window}


def _llama3(head_dim: int, rope: dict[str, Any]) -> Tensor:
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    turns = rope["original_max_position_embeddings"] * rope["rope_theta"] ** (
        -torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    )
    smooth = ((turns / (2 * math.pi) - low) / (high - low)).clamp(0, 1)
    return (1 / ((1 - smooth) / rope["factor"] + smooth)).float()
