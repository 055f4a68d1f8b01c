"""Turn a tokenizer into llama.cpp's form, or say why llama.cpp would read text differently.

llama.cpp knows three kinds that matter here and rebuilds each from its pieces:

    gpt2    byte-level BPE: pieces, merges, and the *name* of the rule that cuts text into words (`PRE`)
    llama   SentencePiece BPE: pieces with scores; it joins any two neighbours whose sum is a piece, best
            score first; a character that no piece has becomes its bytes; without pieces for them it fails
    t5      SentencePiece unigrams: what no piece has becomes the unknown token

A tokenizer of transformers is of the first kind if its cuts are one of the known rules; of the second if its
merges are all that the pieces allow and stand in the order of their results; of the third if its pieces are
single characters. Anything else would not open, or produce nonsense: it is refused here, with the reason.
"""

import json
from typing import Any

from graft.data.templates import affixes, source
from graft.errors import UsageError

# llama.cpp's kinds of tokens
NORMAL = 1
UNKNOWN = 2
CONTROL = 3
OURS = 4
UNUSED = 5
BYTE = 6
NEVER = -1e6  # score of a piece that no merge gives
BLANK = "▁"  # SentencePiece's blank
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?"
    r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
GPT2 = "the cuts of GPT-2"
# (steps that cut text, whether whole words skip the merges) -> the rule's name in llama.cpp
PRE = {
    ((GPT2,), False): "gpt-2",
    (("single digits", GPT2), False): "smollm",
    ((LLAMA3,), True): "llama-bpe",
    ((QWEN2,), False): "qwen2",
    ((TEKKEN,), True): "tekken",
}


def vocabulary(tokenizer: Any, rows: int, ends: list[int]) -> dict[str, Any]:
    """Return the keys of a GGUF file that describe a tokenizer.

    rows: of the model's table.  ends: the tokens that end a text, most general first.
    Raises UsageError, with the reason, if llama.cpp would refuse the vocabulary or read text differently.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise _refusal("has no tokenizer.json", "save it with a fast tokenizer of transformers")
    whole = json.loads(tokenizer.backend_tokenizer.to_str())
    model = whole["model"]
    if model["type"] != "BPE" or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise _refusal(f"is of the kind {model['type']} (llama.cpp's: byte-level and SentencePiece BPE)")
    pieces, kinds = _pieces(whole, rows)
    if _sentencepiece(whole):
        kind = _kind(model, pieces, kinds)
        keys = {"model": kind, "pre": "default", "scores": _scores(model, pieces, kinds), **_blanks(whole)}
    else:
        merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
        if not merges:
            raise _refusal("has no merges, without which llama.cpp reads no byte-level BPE")
        keys = {"model": "gpt2", "pre": _pre(whole), "merges": merges}
    keys |= {"tokens": pieces, "token_type": kinds, **_special(tokenizer, ends)}
    entries = {f"tokenizer.ggml.{key}": value for key, value in keys.items()}
    if tokenizer.chat_template:
        own = source(tokenizer)
        by_name = {"default": own} if isinstance(own, str) else own
        for name, text in by_name.items():
            entries["tokenizer.chat_template" + (f".{name}" if name != "default" else "")] = text
    return entries | {"tokenizer.huggingface.json": json.dumps(whole, ensure_ascii=False)}


def _refusal(what: str, remedy: str = "export it with to='hf'") -> UsageError:
    return UsageError(f"the tokenizer {what}", "a tokenizer that llama.cpp reads like transformers", remedy)


def _pieces(whole: dict[str, Any], rows: int) -> tuple[list[str], list[int]]:
    """Return one piece per row of the table, and its kind; unused rows get a piece that no text contains."""
    added = {token["id"]: token for token in whole["added_tokens"]}
    known = {i: piece for piece, i in whole["model"]["vocab"].items()} | {
        i: t["content"] for i, t in added.items()
    }
    if max(known) >= rows:
        raise _refusal(
            f"has {max(known) + 1:,} tokens and the model's table {rows:,} rows", "resize the model's table"
        )
    if len(set(known.values())) < len(known):
        raise _refusal("has the same piece twice")
    unknown, kinds = whole["model"].get("unk_token"), [UNUSED] * rows
    for i, piece in known.items():
        special = CONTROL if i in added and added[i]["special"] else OURS if i in added else NORMAL
        byte = whole["model"].get("byte_fallback") and piece in BYTES
        kinds[i] = UNKNOWN if piece == unknown else BYTE if byte else special
    return [known.get(i, f"[UNUSED{i}]") for i in range(rows)], kinds


BYTES = {f"<0x{byte:02X}>" for byte in range(256)}


def _steps(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Return the steps of a normalizer or pre-tokenizer, nested or not."""
    if part is None:
        return []
    inside = part.get("pretokenizers") or part.get("normalizers")
    return [step for each in inside for step in _steps(each)] if inside else [part]


def _pre(whole: dict[str, Any]) -> str:
    """Return llama.cpp's name of the rule that cuts text into words."""
    cuts: list[str] = []
    for step in _steps(whole["pre_tokenizer"]):
        if step["type"] == "ByteLevel" and not step["add_prefix_space"]:
            cuts += [GPT2] if step["use_regex"] else []
        elif step["type"] == "Digits" and step["individual_digits"]:
            cuts.append("single digits")
        elif step["type"] == "Split" and step["behavior"] == "Isolated" and "Regex" in step["pattern"]:
            cuts.append(step["pattern"]["Regex"])
        else:
            cuts.append(step["type"])
    name = PRE.get((tuple(cuts), bool(whole["model"].get("ignore_merges"))))
    if name is None:
        raise _refusal(
            f"cuts text by a rule that llama.cpp has no name for ({', '.join(cuts)[:60] or 'none'})"
        )
    strange = [step["type"] for step in _steps(whole["normalizer"]) if step["type"] != "NFC"]
    if strange:
        raise _refusal(f"changes text before it is cut ({', '.join(strange)}), which llama.cpp does not")
    return name


def _sentencepiece(whole: dict[str, Any]) -> bool:
    """Return whether blanks become ▁ and nothing is cut."""
    marks = [step.get("content") for step in _steps(whole["normalizer"]) if step["type"] == "Replace"]
    return BLANK in marks or any(step["type"] == "Metaspace" for step in _steps(whole["pre_tokenizer"]))


def _blanks(whole: dict[str, Any]) -> dict[str, Any]:
    """Return whether a blank is put in front of a text, as keys."""
    front = any(step["type"] == "Prepend" for step in _steps(whole["normalizer"]))
    for step in _steps(whole["pre_tokenizer"]):
        if step["type"] == "Metaspace" and not step.get("split", True):
            front = front or step.get("prepend_scheme", "always") != "never"
        elif (
            step["type"] != "Split" or step["pattern"].get("String") != " "
        ):  # after that no blank is left to cut
            raise _refusal(f"cuts text into words ({step['type']}), which llama.cpp's SentencePiece does not")
    return {"add_space_prefix": front, "remove_extra_whitespaces": False}


def _kind(model: dict[str, Any], pieces: list[str], kinds: list[int]) -> str:
    """Return which of the two SentencePiece kinds it is: by what becomes of a character that no piece has."""
    if kinds.count(BYTE) == len(BYTES):
        return "llama"
    characters = all(len(piece) == 1 for piece, kind in zip(pieces, kinds, strict=True) if kind == NORMAL)
    if characters and UNKNOWN in kinds and model.get("fuse_unk"):
        return "t5"
    raise _refusal("has no pieces for the 256 bytes: llama.cpp fails at a character that is no piece")


def _scores(model: dict[str, Any], pieces: list[str], kinds: list[int]) -> list[float]:
    """Return minus the rank of each piece's first merge.

    With all merges there, both programs join the same neighbours first.
    """
    ranks: dict[str, list[int]] = {}
    pairs = set()
    for rank, merge in enumerate(model["merges"]):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        ranks.setdefault(left + right, []).append(rank)
        pairs.add((left, right))
    scores, known = (
        [NEVER] * len(pieces),
        {p for p, kind in zip(pieces, kinds, strict=True) if kind == NORMAL},
    )
    for i, piece in enumerate(pieces):
        merges = ranks.get(piece, [])
        if merges:
            scores[i] = -float(merges[0])
        if merges and merges[-1] - merges[0] != len(merges) - 1:
            raise _refusal(
                f"joins {piece!r} in several ways of different rank; llama.cpp gives a piece one rank"
            )
        splits = ((piece[:at], piece[at:]) for at in range(1, len(piece))) if kinds[i] == NORMAL else ()
        for left, right in splits:
            if left in known and right in known and (left, right) not in pairs:
                raise _refusal(f"never joins {left!r} and {right!r}, which llama.cpp would, to {piece!r}")
    return scores


def _special(tokenizer: Any, ends: list[int]) -> dict[str, Any]:
    """Return the keys for start, stops and padding.

    llama.cpp has three stops of its own: end of text, of a turn, of a message.
    """
    front, back = affixes(tokenizer)
    if front not in ([], [tokenizer.bos_token_id]) or back not in ([], [tokenizer.eos_token_id]):
        raise _refusal("puts other tokens around a text than its start and its end")
    if not 1 <= len(ends) <= 3:
        raise _refusal(
            f"has {len(ends)} tokens that end a text (llama.cpp: one to three)", "set eos_token_id"
        )
    stops = dict(zip(("eos_token_id", "eot_token_id", "eom_token_id"), ends, strict=False))
    special = {
        "bos": tokenizer.bos_token_id,
        "unknown": tokenizer.unk_token_id,
        "padding": tokenizer.pad_token_id,
    }
    ids = {f"{name}_token_id": i for name, i in special.items() if i is not None}
    return {**stops, **ids, "add_bos_token": bool(front), "add_eos_token": bool(back)}
