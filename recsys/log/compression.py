"""Compression of records with features: impressions and examples.

A compressed record is ``_MARK``, whose first byte begins no MessagePack, and a Zstandard frame. The frame's
dictionary holds names of fields, which make up a tenth of a record. The dictionary is part of the format: a
change needs another mark. Records without the mark, such as those of older logs, are read as they are.
"""

import threading
from collections.abc import Callable
from typing import Final

import msgspec
import zstandard

_MARK: Final = b"\xc1\x01"
_MOST_BYTES: Final = 64 << 20  # of an expanded record: a damaged frame may name any size
# Levels above this one take twice as long or more, for 2 % fewer bytes.
_FAST: Final = zstandard.ZstdCompressionParameters(
    strategy=zstandard.STRATEGY_FAST, hash_log=12, min_match=4, target_length=1, window_log=15
)
_MS: Final = 1_790_000_000_000
# fmt: off
_SOURCES: Final = ["covisit", "vector", "topic", "popular", "segment", "trial"]
_IMPRESSION: Final = {
    "type": "impression", "time_ms": _MS, "request_id": "", "user_id": "", "items": [
        {"item_id": "", "propensity": 0.01, "score": 0.1, "sources": _SOURCES}
    ], "context": {}, "degraded": [], "asked": {
        "n": 10, "candidates": 300, "source_floor": 0.5, "session": "", "counted": []
    }, "teams": [], "shares": [], "event_id": None, "v": 1,
}
_EXAMPLE: Final = {
    "partition": 0, "offset": 0, "index": 0, "labels": [0.0] * 8, "watch_ms": 0,
    "correction": False, "previous": [], "arrived": [], "kept": 1.0, "sampled_out": False,
    "served_by": "main/0", "features": {
        "feature_set": "", "user_keys": b"", "item_keys": b"", "history": b"", "outcomes": b"",
        "dense": b"", "backfilled": False
    }, "sequence": 0, "request_id": "", "user_id": "", "item_id": "", "surface": "feed",
    "shown_ms": _MS, "closed_ms": _MS, "view_ended_ms": _MS, "propensity": 0.01, "stamp": {
        "line": "main", "epoch": 0, "step": 0, "catalogue_offset": 0, "item_state_offset": 0,
        "session_offset": 0, "policy": "", "arms": {}, "index": ""
    }, "predicted": b"",
}
# fmt: on
DICTIONARY: Final = msgspec.msgpack.encode(_IMPRESSION) + msgspec.msgpack.encode(_EXAMPLE)


class _Codec(threading.local):
    """The contexts of a thread, which no other may use."""

    def __init__(self) -> None:
        names = zstandard.ZstdCompressionDict(DICTIONARY, zstandard.DICT_TYPE_RAWCONTENT)
        names.precompute_compress(compression_params=_FAST)
        compressor = zstandard.ZstdCompressor(dict_data=names, compression_params=_FAST)
        self.compress: Callable[[bytes], bytes] = compressor.compress
        self.expand: Callable[[bytes], bytes] = zstandard.ZstdDecompressor(names).decompress


_codec: Final = _Codec()


def compressed(record: bytes) -> bytes:
    """The record as stored on the log; ``plain`` gives it back."""
    return _MARK + _codec.compress(record)


def plain(value: bytes) -> bytes:
    """The record of a value on the log, compressed or not. Raises msgspec.DecodeError for a damaged one."""
    if value[:2] != _MARK:
        return value
    frame = value[2:]
    try:
        size = zstandard.frame_content_size(frame)
        if size > _MOST_BYTES:
            raise zstandard.ZstdError(f"it names {size} bytes, expected at most {_MOST_BYTES}")
        return _codec.expand(frame)
    except zstandard.ZstdError as error:
        raise msgspec.DecodeError(f"a compressed record is damaged: {error}") from None
