"""What any vLLM does with an adapter's folder, written anew from its sources: the oracle of such folders.

It reads r, lora_alpha, use_rslora, use_dora, bias and modules_to_save of adapter_config.json, and every
tensor of adapter_model.safetensors. Older versions know no rank_pattern and no alpha_pattern: every B
is multiplied by one number. From vllm/lora/peft_helper.py, vllm/lora/lora_model.py and vllm/config/lora.py.
"""

import copy
import json
import math

import torch
from safetensors.torch import load_file

MAX_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that --max-lora-rank takes
START = "base_model.model."
ENDS = (".lora_A.weight", ".lora_B.weight")


def served(model, folder, max_lora_rank):
    """Return a copy of transformers' model that computes as vLLM does with this adapter.

    Raises ValueError where vLLM does.
    """
    config = json.loads((folder / "adapter_config.json").read_text())
    r, alpha = config["r"], config["lora_alpha"]
    refused = [key for key in ("modules_to_save", "use_dora", "trainable_token_indices") if config.get(key)]
    refused += [key for key in ("lora_bias", "use_qalora", "layer_replication") if config.get(key)]
    refused += ["init"] if isinstance(config.get("init_lora_weights"), str) else []  # pissa, olora, loftq
    refused += ["bias"] if config.get("bias", "none") != "none" else []
    if refused or max_lora_rank not in MAX_RANKS or r > max_lora_rank:
        raise ValueError(f"{refused}, rank {r} of {max_lora_rank}")
    scale = alpha / (math.sqrt(r) if config.get("use_rslora") else r)
    tensors = load_file(folder / "adapter_model.safetensors")
    model = copy.deepcopy(model)
    for key, A in tensors.items():
        if not key.startswith(START) or not key.endswith(ENDS):
            raise ValueError(f"{key} is unsupported LoRA weight")
        if key.endswith(ENDS[1]):
            continue
        name = key.removeprefix(START).removesuffix(ENDS[0])
        B = tensors[key.replace(*ENDS)]
        module = model.get_submodule(name)
        if type(module) is not torch.nn.Linear or len(A) > max_lora_rank:
            raise ValueError(f"{name} is no linear, or its rank {len(A)} is too large")
        with torch.no_grad():
            module.weight += scale * (B @ A)
    return model
