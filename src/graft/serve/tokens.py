"""Tokens and their log-probabilities as OpenAI's API shows them."""

from typing import Any

from graft.serve.jobs import Piece


def shown(tokenizer: Any, token: int) -> tuple[str, list[int]]:
    """Return a token as text, and its bytes."""
    text = tokenizer.decode([token], clean_up_tokenization_spaces=False)
    return text, list(text.encode("utf-8", "replace"))


def chat_logprobs(tokenizer: Any, piece: Piece) -> dict[str, Any]:
    """Return the log-probabilities of a piece in the form of chat completions."""
    content = []
    for place, (token, logprob) in enumerate(zip(piece.tokens, piece.logprobs, strict=False)):
        text, raw = shown(tokenizer, token)
        others = piece.top_logprobs[place] if place < len(piece.top_logprobs) else {}
        top = []
        for other, value in others.items():
            name, bytes_ = shown(tokenizer, other)
            top.append({"token": name, "logprob": value, "bytes": bytes_})
        content.append({"token": text, "logprob": logprob, "bytes": raw, "top_logprobs": top})
    return {"content": content, "refusal": None}


def text_logprobs(tokenizer: Any, piece: Piece, offset: int) -> dict[str, Any]:
    """Return the log-probabilities of a piece in the form of text completions.  offset: where it begins."""
    tokens, offsets, at, special = [], [], offset, set(tokenizer.all_special_ids)
    for token in piece.tokens[: len(piece.logprobs)]:
        text, _ = shown(tokenizer, token)
        tokens.append(text)
        offsets.append(at)
        at += 0 if token in special else len(text)  # an echo does not show them
    top = [{shown(tokenizer, other)[0]: value for other, value in one.items()} for one in piece.top_logprobs]
    return {
        "tokens": tokens,
        "token_logprobs": list(piece.logprobs),
        "top_logprobs": top or None,
        "text_offset": offsets,
    }
