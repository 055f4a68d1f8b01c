"""Flip single bits of a file where it lies, one after another, and put each right again."""

import random
from collections.abc import Iterator
from pathlib import Path


def every_byte(path: Path, seed: int = 0, bits: int = 1) -> Iterator[int]:
    """Yield the place of each byte while `bits` of its bits are flipped, one at a time.

    The byte is written in place: to write the whole file each time would wait for the disk.
    """
    chance, sound = random.Random(seed), path.read_bytes()
    with open(path, "r+b", buffering=0) as file:
        for place, byte in enumerate(sound):
            for bit in chance.sample(range(8), bits):
                file.seek(place)
                file.write(bytes([byte ^ 1 << bit]))
                yield place
            file.seek(place)
            file.write(bytes([byte]))


def some_bytes(path: Path, count: int, seed: int = 0) -> Iterator[int]:
    """Yield `count` places, each while one bit of its byte is flipped."""
    chance, sound = random.Random(seed), path.read_bytes()
    with open(path, "r+b", buffering=0) as file:
        for place in (chance.randrange(len(sound)) for _ in range(count)):
            file.seek(place)
            file.write(bytes([sound[place] ^ 1 << chance.randrange(8)]))
            yield place
            file.seek(place)
            file.write(sound[place : place + 1])
