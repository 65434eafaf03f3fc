"""Compressed records are the same records, of whatever thread; a damaged one is unreadable, no crash."""

import zlib
from concurrent.futures import ThreadPoolExecutor

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.events.event_types import FeatureBlock, Impression, Rejected, ServedItem, Stamp, decode, encode
from recsys.events.records import Example, TrainingExample, pack, record_of, unpack, unpack_all
from recsys.log.compression import DICTIONARY, compressed, plain

# As the first version wrote it.
WRITTEN = bytes.fromhex("c10128b52ffd602c0055000018616263010026aa6e08")
RECORD = b"abc" * 100


def example(features: FeatureBlock) -> Example:
    return Example(
        partition=1,
        offset=7,
        index=0,
        labels=[1.0, 0.0],
        features=features,
        sequence=3,
        request_id="r1",
        user_id="u1",
        item_id="v1",
        surface="feed",
        shown_ms=1_790_000_000_000,
        closed_ms=1_790_000_003_000,
        stamp=Stamp(step=9),
    )


def sparse_features(seed: int = 0) -> FeatureBlock:
    """Features with as many zeros as those of a feed."""
    draw = np.random.default_rng(seed)

    def words(count: int) -> bytes:
        return (draw.random(count, np.float32) * (draw.random(count) < 0.4)).tobytes()

    return FeatureBlock(
        feature_set="0" * 32,
        user_keys=words(92),
        item_keys=words(44),
        history=words(200),
        outcomes=words(180),
        dense=words(122),
    )


def test_the_dictionary_is_part_of_the_format():
    assert zlib.crc32(DICTIONARY) == 432164847
    assert plain(WRITTEN) == RECORD


@given(st.binary(max_size=3_000) | st.binary(max_size=40).map(lambda part: part * 50))
def test_a_record_comes_back_whole(record):
    assert plain(compressed(record)) == record


@given(
    st.builds(
        FeatureBlock,
        feature_set=st.just("0" * 32),
        user_keys=st.binary(max_size=64),
        item_keys=st.binary(max_size=64),
        history=st.binary(max_size=64),
        outcomes=st.binary(max_size=64),
        dense=st.binary(max_size=64),
    )
)
def test_events_and_examples_are_read_compressed_or_not(features):
    record = pack(example(features))
    for kind in (Example, TrainingExample):
        assert unpack(compressed(record), kind) == unpack(record, kind)
        assert unpack_all([compressed(record), record], kind) == [unpack(record, kind)] * 2
    shown = Impression(
        time_ms=1, request_id="r1", user_id="u1", items=[ServedItem(item_id=4)], features=features
    )
    assert decode(encode(shown)) == decode(record_of(shown, 4).value) == shown
    assert plain(record_of(shown, 4).value) == encode(shown)


def test_records_shrink_by_half():
    record = pack(example(sparse_features()))
    assert len(compressed(record)) < 0.5 * len(record)


@pytest.mark.parametrize("cut", [b"\xc1", b"\xc1\x01", b"\xc1\x02rest", WRITTEN[:-3], WRITTEN[:9]])
def test_a_damaged_record_is_unreadable(cut):
    with pytest.raises(msgspec.DecodeError):
        unpack(cut, TrainingExample)
    with pytest.raises(Rejected):
        decode(cut)


def test_a_frame_that_names_a_giant_size_is_not_expanded():
    giant = bytearray(compressed(b"a" * 100_000))
    at = 2 + 4 + 2  # after the mark, the magic number, descriptor and window
    giant[at : at + 4] = b"\xff\xff\xff\x7f"
    with pytest.raises(msgspec.DecodeError, match="expected at most"):
        plain(bytes(giant))


def test_threads_do_not_share_a_context():
    records = [bytes([n]) * 50 + RECORD * (n % 7 + 1) for n in range(250)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda record: plain(compressed(record)), records)) == records
