"""Build a model with random weights from the keys of a transformers config."""

from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES, AutoConfig

from graft.base.base import Base
from graft.errors import UsageError, nearest
from graft.models.dtype import AUTO, choose
from graft.models.files import first_line
from graft.models.load import device_of, dtype_of, model_class, quiet


def fresh(
    config: dict[str, Any],
    tokenizer: Any = None,
    dtype: str | None = "fp32",
    seed: int = 0,
    *,
    task: str | None = None,
) -> Base:
    """Build a model with random weights.

    config: keys of a transformers config, such as {"model_type": "llama", ...}. vocab_size and the ids of
    special tokens come from the tokenizer if they are not among them. The same seed gives the same weights.
    dtype: bf16, fp32 or fp16; "auto", or None: whichever of the first two multiplies faster here.
    """
    config = dict(config)
    device = device_of(None)
    torch_dtype = dtype_of(choose(device.type).dtype if dtype in (None, AUTO) else str(dtype))
    model_type = str(config.pop("model_type", ""))
    if model_type not in CONFIG_MAPPING_NAMES:
        raise UsageError(
            f"model_type {model_type!r}",
            "an architecture of transformers",
            f"nearest: {', '.join(nearest(model_type, CONFIG_MAPPING_NAMES))}",
        )
    known = {**AutoConfig.for_model(model_type).to_dict(), **AutoConfig.for_model(model_type).attribute_map}
    for key in config:
        if key not in known:
            raise UsageError(
                f"config key {key!r} of {model_type}",
                "a key of its config",
                f"nearest: {', '.join(nearest(key, known))}",
            )
    if tokenizer is not None:
        ids = {
            f"{name}_token_id": getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "pad")
        }
        config = {"vocab_size": len(tokenizer), **ids} | config
        if config["vocab_size"] < len(tokenizer):
            raise UsageError(
                f"vocab_size {config['vocab_size']}",
                f"at least the tokenizer's {len(tokenizer)}",
                "leave vocab_size out",
            )
    try:
        built = AutoConfig.for_model(model_type, **config)
        cls = model_class(built, task)
        with torch.random.fork_rng(), quiet():
            torch.manual_seed(seed)
            model = cls._from_config(built, dtype=torch_dtype)
    except (ValueError, TypeError, RuntimeError, ZeroDivisionError, StrictDataclassError) as error:
        raise UsageError(
            f"no {model_type} can be built from this config: {first_line(error.__cause__ or error)}",
            "sizes that fit together",
            "compare with the config of a published model",
        ) from error
    return Base(model.to(device), tokenizer, f"fresh {model_type}")
