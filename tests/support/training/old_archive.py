"""Archive files as versions before digests wrote them."""

from pathlib import Path
from struct import pack, unpack

from training.archive.digest import MARK

_BYTES = len(MARK) + 32


def remove_digests(*paths: Path) -> None:
    for path in paths:
        data = path.read_bytes()
        length, magic = unpack("<I4s", data[-8:])
        assert data[-8 - _BYTES :].startswith(MARK), f"{path} has no digest"
        path.write_bytes(data[: -8 - _BYTES] + pack("<I4s", length - _BYTES, magic))
