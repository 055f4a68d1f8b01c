"""Positions: how many a model has, where it starts to count, and whether documents may share a row."""

from collections.abc import Iterator
from typing import Any

# Encoders whose first position is padding_idx + 1, in transformers' create_position_ids_from_input_ids.
AFTER_PADDING = {
    "camembert", "data2vec-text", "esm", "ibert", "lilt", "longformer", "luke", "markuplm", "mpnet",
    "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
}  # fmt: skip


def context_length(config: Any) -> int | None:
    """Return how many tokens a model (a transformers config) takes; None if it has no limit, as T5."""
    text = config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None)
    return limit - first_position(text) if isinstance(limit, int) else None


def first_position(config: Any) -> int:
    """Return the position id of a row's first token for this model (a transformers config)."""
    return config.pad_token_id + 1 if config.model_type in AFTER_PADDING else 0


def obstacle(config: Any, max_length: int) -> str | None:
    """Return why rows of `max_length` tokens of this model (a transformers config) cannot be packed, or None.

    None is no promise: what a state or a convolution does to a row only a probe tells (`base.probes`). An
    explicit mask replaces the model's own, so a sliding window shorter than a row would be lost. Only sdpa
    obeys a mask of truth values; eager attention would add it to the scores, and the documents would see each
    other.
    """
    text = config.get_text_config()
    attention = getattr(config, "_attn_implementation", None) or "sdpa"
    if not attention.endswith("sdpa"):
        return f"its attention is {attention}, which takes no block mask"
    if getattr(text, "is_encoder_decoder", False):
        return "an encoder-decoder"
    window = min(_windows(text), default=max_length)
    if window < max_length:
        return f"its attention window of {window} is shorter than max_length {max_length}"
    return None


def _windows(text: Any) -> Iterator[int]:
    """Yield the lengths of the attention windows of a text model's config."""
    for layer in text.per_layer_config if getattr(text, "is_heterogeneous", False) else (text,):
        if getattr(layer, "use_sliding_window", True):
            sizes = (getattr(layer, name, None) for name in ("sliding_window", "attention_chunk_size"))
            yield from (size for size in sizes if size)
