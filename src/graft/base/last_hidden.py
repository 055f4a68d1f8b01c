"""The last hidden state and what comes after it.

`captured` catches what ENTERS the language head and lets one position through, so that full logits, often the
largest tensor of all, never exist. `transform` does what a few families do to the logits after the head.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn


@contextlib.contextmanager
def captured(model: Any) -> Iterator[list[torch.Tensor]]:
    """Let forwards inside the block put what enters the head, (B, T, D), into the list that is yielded."""
    caught: list[torch.Tensor] = []

    def one_position(module: nn.Module, args: tuple[Any, ...]) -> tuple[torch.Tensor]:
        caught.append(args[0])
        return (args[0][:, :1],)

    handle = model.get_output_embeddings().register_forward_pre_hook(one_position)
    try:
        yield caught
    finally:
        handle.remove()


def transform(config: Any, logits: torch.Tensor) -> torch.Tensor:
    """Apply what Gemma 2 and 3, Cohere and Granite do to the head's output."""
    config = config.get_text_config()
    cap = getattr(config, "final_logit_softcapping", None)
    if cap:
        return torch.tanh(logits / cap) * cap
    if config.model_type.startswith("cohere"):
        return logits * config.logit_scale
    if config.model_type.startswith("granite"):
        return logits / config.logits_scaling
    return logits
