"""Single flipped bits in files, chosen by a seed."""

import random
from collections.abc import Iterator
from pathlib import Path


def with_flips(path: Path, count: int, seed: int) -> Iterator[int]:
    """Yields the position of each flipped bit while the file has it, and restores the file at the end."""
    intact = path.read_bytes()
    draw = random.Random(seed)
    for _ in range(count):
        bit = draw.randrange(8 * len(intact))
        flip_bit(path, bit, intact)
        yield bit
    path.write_bytes(intact)


def flip_bit(path: Path, bit: int, intact: bytes | None = None) -> None:
    data = bytearray(path.read_bytes() if intact is None else intact)
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)
