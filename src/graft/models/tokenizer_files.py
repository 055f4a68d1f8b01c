"""Check the files of a tokenizer before a library reads them: some would take minutes or all memory.

tokenizer.json is a program of regular expressions and replacements. What every known tokenizer has passes by
its form alone. Anything else encodes a few texts in a process of its own first, with a limit of time, memory
and length.
"""

import base64
import binascii
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from graft.errors import ModelError
from graft.models.files import read_object
from graft.sizes import size

ADDED = 1 << 17  # tokens beside the vocabulary; models of speech add 65,536
DENSE = 1 << 12  # added tokens of more than this follow the vocabulary without a gap, or they take minutes
BYTES = 1 << 28  # of one file
STEPS = 256  # nodes of a normalizer, a pre-tokenizer, a post-processor or a decoder
GROWTH = 64  # characters that may become of one by all replacements; letters of NFKC become up to 18
SYMBOLS = 64  # bytes that one entry of a character map may write
PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
SECONDS, ROOM = 2, 1 << 28  # of the process that tries a tokenizer
WAIT_S = None if hasattr(signal, "setitimer") else 60.0  # by the clock, where that is all there is
# Every unbounded repetition of a group that holds an unbounded repetition: its time may double per letter.
NESTED = re.compile(r"[*+}][^()]*\)(?:[*+]|\{\d+,\})")
TRIED = """
import sys; sys.path[:] = sys.argv[4:]
import mmap, signal
from tokenizers import Tokenizer
seconds, room, path = float(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
try:
    import resource
    with open("/proc/self/statm") as file:
        has = int(file.read().split()[0]) * mmap.PAGESIZE
    resource.setrlimit(resource.RLIMIT_AS, (has + room, has + room))
except (ImportError, OSError, ValueError):
    pass  # Windows has no limits, macOS does not tell what a process has
if hasattr(signal, "setitimer"):
    signal.setitimer(signal.ITIMER_PROF, seconds)
tokenizer = Tokenizer.from_file(path)
letters = ("the cat ", " ", "a", "1", "a1 ", "!?.", "\\n \\t", "é日 ﷺ")
for text in (*letters, *(each * 500 for each in letters)):
    ids = tokenizer.encode(text).ids
    assert len(ids) <= 64 * (len(text) + 4), "it makes too many tokens"
    tokenizer.decode(ids)
"""


def require_plausible(folder: Path) -> None:
    """Raise ModelError for files of a tokenizer that nobody should read."""
    for file in sorted(folder.glob("*.json")):
        if "token" in file.name and file.stat().st_size > BYTES:
            raise _strange(file, f"{file.stat().st_size:,} bytes", f"{BYTES:,} at most")
    _check_settings(folder / "tokenizer_config.json")
    for name in ("added_tokens.json", "special_tokens_map.json"):
        if (folder / name).exists():
            _check_count(folder / name, name, read_object(folder / name))
    if (folder / "tokenizer.json").exists():
        _check_program(folder / "tokenizer.json")


def panicked(error: BaseException) -> bool:
    """Return whether the library of tokenizers broke down: it raises what no `except Exception` catches."""
    return type(error).__name__ == "PanicException"


def _check_settings(file: Path) -> None:
    if not file.exists():
        return
    facts = read_object(file)
    for key in ("added_tokens_decoder", "additional_special_tokens", "extra_special_tokens"):
        _check_count(file, key, facts.get(key))
    length = facts.get("model_max_length")
    if length is not None and (isinstance(length, bool) or not isinstance(length, int | float)):
        raise _strange(file, f"model_max_length {length!r:.40}", "a number of tokens")
    template = facts.get("chat_template")
    named = isinstance(template, list) and all(
        isinstance(one, dict) and {"name", "template"} <= one.keys() for one in template
    )
    if not (template is None or isinstance(template, str | dict) or named):
        raise _strange(file, f"chat_template {template!r:.40}", "a text, or a list of names and templates")


def _check_count(file: Path, key: str, tokens: Any) -> None:
    if isinstance(tokens, list | dict) and len(tokens) > ADDED:
        raise _strange(file, f"{len(tokens):,} tokens in {key}", f"{ADDED:,} at most")


def _check_program(file: Path) -> None:
    facts = read_object(file)
    added = facts.get("added_tokens") or []
    if not isinstance(added, list):
        raise _strange(file, f"added_tokens {added!r:.40}", "a list of tokens")
    _check_count(file, "added_tokens", added)
    vocabulary = (facts.get("model") or {}).get("vocab") if isinstance(facts.get("model"), dict) else None
    if len(added) > DENSE and isinstance(vocabulary, list | dict):
        ids = [token.get("id") for token in added if isinstance(token, dict)]
        largest = max((i for i in ids if isinstance(i, int)), default=0)
        if largest >= len(vocabulary) + len(added):
            raise _strange(
                file, f"{len(added):,} added tokens with ids up to {largest:,}", "ids without a gap"
            )
    steps = [step for part in PARTS for step in _steps(facts.get(part))]
    if len(steps) > STEPS:
        raise _strange(file, f"{len(steps):,} steps and tokens around its model", f"{STEPS} at most")
    if math.prod(map(_growth, steps)) > GROWTH or any(map(_slow, steps)):
        _try(file)


def _steps(part: Any) -> Iterator[dict[str, Any]]:
    """Yield the steps of a part, those of a sequence too."""
    waiting = [part]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            yield from ({} for _ in value)  # what is not a step, such as a token around a text, counts as one
            waiting += value
        elif isinstance(value, dict):
            if "type" in value:
                yield value
            waiting += [each for each in value.values() if isinstance(each, dict | list)]


def _growth(step: dict[str, Any]) -> int:
    """Return how many characters a step may make of one, as far as its form tells."""
    written, pattern = step.get("content", step.get("prepend", "")), step.get("pattern")
    replaced = pattern.get("String") if isinstance(pattern, dict) else None
    size = len(replaced) if isinstance(replaced, str) and replaced else 1
    return max(1, -(-len(written) // size)) if isinstance(written, str) else 1


def _slow(step: dict[str, Any]) -> bool:
    """Return whether a step may take long, or writes long texts for one character."""
    pattern, symbols = step.get("pattern"), step.get("precompiled_charsmap")
    expression = pattern.get("Regex") if isinstance(pattern, dict) else None
    if isinstance(expression, str) and (len(expression) > 2000 or NESTED.search(expression)):
        return True
    return isinstance(symbols, str) and _longest(symbols) > SYMBOLS


def _longest(symbols: str) -> int:
    """Return the length of the longest text in a character map of SentencePiece, behind its table."""
    try:
        raw = base64.b64decode(symbols)
    except (binascii.Error, ValueError):
        return SYMBOLS + 1
    return max(map(len, raw[4 + int.from_bytes(raw[:4], "little") :].split(b"\0")), default=0)


def _try(file: Path) -> None:
    """Encode a few texts in a process of its own. Raises ModelError where it breaks down or is too slow."""
    quiet = os.environ | {"TOKENIZERS_PARALLELISM": "false", "RUST_BACKTRACE": "0"}
    command = [sys.executable, "-I", "-c", TRIED, str(SECONDS), str(ROOM), str(file), *sys.path]
    try:
        done = subprocess.run(command, capture_output=True, env=quiet, timeout=WAIT_S)
    except subprocess.TimeoutExpired:
        what = f"it takes more than {WAIT_S:g} s"
        raise _strange(file, f"a tokenizer that cannot encode a few words ({what})", "one that can") from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().split("\n")[-1]
        what = said if done.returncode > 0 else f"it takes more than {SECONDS} s or {size(ROOM)}"
        raise _strange(file, f"a tokenizer that cannot encode a few words ({what:.200})", "one that can")


def _strange(file: Path, given: str, expected: str) -> ModelError:
    return ModelError(f"{file} has {given}", expected, "take the tokenizer of the original model")
