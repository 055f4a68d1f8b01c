"""Mutations of JSON and of bytes: each a function of one generator of random numbers.

A value is replaced by one of another kind or size, dropped, doubled or moved; bytes are flipped, cut, doubled
or put elsewhere.
"""

import copy
import json
import random
import struct
from typing import Any

BOMB = "(([a-z_]|[a-z0-9_.])*)*!"  # a regular expression that takes for ever on "aaaa...b"
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**70, 10**400, 0.5, -0.0, 1e30, 1e308, float("nan"),
    float("inf"), "", " ", "16", "nan", "\0", "\ud800", "x" * 100_000, "é" * 999, "../../../etc/passwd", BOMB,
    "(", "[a-", ".*", [], {}, [[]], [None], [1, "a", {}], {"": None}, {"q_proj": 2_000_000_000}, [0] * 20_000,
    {str(number): number for number in range(5000)},
]  # fmt: skip
DEEP = "@deep@"  # stands for lists in lists, which no Python value of that depth can be written or copied
DEPTH = 2000


SPLINTERS = (b"\0", b"\xff\xfe", b'"', b"\n", b"{", b"[" * 3000, b"\xed\xa0\x80", b"\r")


def hostile(chance: random.Random) -> Any:
    """Return a value that nobody means."""
    return copy.deepcopy(chance.choice([*VALUES, DEEP]))


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every value inside a value of JSON."""
    found = [path] if path else []
    if len(path) < 6 and isinstance(value, dict | list):
        for key, inner in list(value.items() if isinstance(value, dict) else enumerate(value))[:400]:
            found += places(inner, (*path, key))
    return found


def mutated(value: Any, chance: random.Random) -> Any:
    """Return a value of JSON with one to three places changed."""
    if chance.random() < 0.03:
        return hostile(chance)
    value = copy.deepcopy(value)
    for _ in range(chance.randint(1, 3)):
        known = places(value)
        if not known:
            return hostile(chance)
        *above, key = chance.choice(known)
        holder = value
        for part in above:
            holder = holder[part]
        kind = chance.random()
        if kind < 0.55:
            holder[key] = hostile(chance)
        elif kind < 0.65:
            del holder[key]
        elif kind < 0.75:
            holder[key] = [holder[key]] if chance.random() < 0.5 else {"a": holder[key]}
        elif kind < 0.85 and isinstance(holder, dict):
            holder[chance.choice([f"{key}_", f" {key}", str(key).upper(), ""])] = holder[key]
        elif isinstance(holder[key], int | float):
            holder[key] = chance.choice([holder[key] * 1000, -holder[key], str(holder[key]), holder[key] + 1])
        else:
            holder[key] = str(holder[key])
    return value


def as_json(value: Any, chance: random.Random) -> bytes:
    """Write a value; sometimes with damaged syntax."""
    text = json.dumps(value, ensure_ascii=chance.random() < 0.5)
    data = text.replace(f'"{DEEP}"', "[" * DEPTH + "]" * DEPTH).encode("utf-8", "surrogatepass")
    return damaged(data, chance) if chance.random() < 0.15 else data


def damaged(data: bytes, chance: random.Random) -> bytes:
    """Return bytes with one to four places changed."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(changed) + 1)
        kind = chance.randrange(7)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del changed[at:]
        elif kind == 2:
            del changed[at : at + chance.randrange(1, 40)]
        elif kind == 3:
            changed[at:at] = chance.randbytes(chance.randrange(1, 40))
        elif kind == 4:
            changed[at:at] = changed[max(0, at - chance.randrange(1, 400)) : at]
        elif kind == 5:
            changed[at:at] = chance.choice(
                [b"\0", b"\xff\xfe", b'"', b"\n", b"{", b"[" * 3000, b"\xed\xa0\x80", b"\r"]
            )
        else:
            changed[at : at + 8] = struct.pack("<Q", chance.choice([0, 1, 2**31, 2**63, 2**64 - 1]))
    return bytes(changed)
