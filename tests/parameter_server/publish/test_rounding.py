import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from parameter_server.publish.rounding import (
    FORMATS,
    check_format,
    digest_of_rows,
    distances,
    read_dense,
    read_rows,
    round_dense,
    round_rows,
    row_bytes,
)

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
ROWS = arrays.arrays(np.float32, st.tuples(st.integers(0, 5), st.integers(1, 9)), elements=FLOATS)


def halves(rows):
    """numpy's own rounding, saturated."""
    with np.errstate(over="ignore"):
        out = rows.astype(np.float16)
    return np.where(np.isinf(out), np.copysign(np.float16(65504), out), out).astype(np.float16)


@given(ROWS)
def test_fp16_is_numpys_and_never_infinite(rows):
    packed, rounded = round_rows(rows, "fp16")
    assert packed.tobytes() == halves(rows).tobytes()
    assert rounded.tobytes() == halves(rows).astype(np.float32).tobytes()


def test_fp16_is_numpys_at_every_half_beside_it_and_in_the_middle():
    every = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
    every = np.sort(every[np.isfinite(every)])
    beside = [np.nextafter(every, np.float32(to)) for to in (-np.inf, np.inf)]
    rows = np.concatenate([every, *beside, (every[:-1] + every[1:]) / 2]).reshape(1, -1)
    assert round_rows(rows, "fp16").packed.tobytes() == halves(rows).tobytes()


MODERATE = arrays.arrays(
    np.float32, (3, 5), elements=st.floats(width=32, min_value=-(2.0**120), max_value=2.0**120)
)


@given(ROWS)
def test_int8_is_never_infinite(rows):
    assert np.isfinite(round_rows(rows, "int8").rows).all()


@given(MODERATE)
def test_int8_errs_by_half_a_step_of_the_row_at_most(rows):
    _, rounded = round_rows(rows, "int8")
    top = np.abs(rows).max(1, keepdims=True, initial=0)
    assert (np.abs(rounded - rows) <= np.maximum(top / 127 * 0.5001, 1e-30)).all()


@given(ROWS, st.sampled_from(FORMATS))
def test_a_reader_makes_of_the_bytes_what_the_writer_says(rows, name):
    packed, rounded = round_rows(rows, name)
    assert packed.shape == (len(rows), row_bytes(rows.shape[1], name))
    read = read_rows(packed.tobytes(), rows.shape[1], name)
    assert read.shape == rows.shape and read.tobytes() == rounded.tobytes()
    alone = [round_rows(row[None], name).packed.tobytes() for row in rows]
    assert b"".join(alone) == packed.tobytes()


@pytest.mark.parametrize(("name", "size"), [("fp32", 4), ("fp16", 2), ("int8", 2)])
def test_dense_parameters_are_halved_but_never_int8(name, size):
    dense = np.linspace(-3, 3, 1001, dtype=np.float32)
    data, rounded = round_dense(dense, name)
    assert len(data) == size * len(dense)
    assert read_dense(data, name).tobytes() == rounded.tobytes()
    assert np.abs(rounded - dense).max() <= 3 * 2.0**-11


def test_a_digest_is_a_sum_in_any_order():
    keys = np.arange(10)
    rows = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
    everyone, order = np.ones(10, bool), np.random.default_rng(1).permutation(10)
    whole = digest_of_rows(7, keys, rows, everyone)
    assert whole == digest_of_rows(7, keys[order], rows[order], everyone)
    some = keys % 3 == 0
    parts = [digest_of_rows(7, keys, rows, chosen) for chosen in (some, ~some)]
    assert sum(parts) % 2**64 == whole and digest_of_rows(7, keys, rows, ~everyone) == 0


def test_a_digest_knows_keys_values_places_and_tables():
    keys, rows, all_ = np.arange(4), np.eye(4, 3, dtype=np.float32), np.ones(4, bool)
    flipped = rows.copy()
    flipped.view(np.uint32)[2, 1] ^= 1
    zero = rows.copy()
    zero[3] = -0.0
    digests = {
        digest_of_rows(7, keys, rows, all_),
        digest_of_rows(8, keys, rows, all_),
        digest_of_rows(7, keys + 1, rows, all_),
        digest_of_rows(7, keys, rows[::-1].copy(), all_),
        digest_of_rows(7, keys, rows[:, ::-1].copy(), all_),
        digest_of_rows(7, keys, flipped, all_),
        digest_of_rows(7, keys, zero, all_),
    }
    assert len(digests) == 7


def test_distances_are_euclidean():
    left, right = np.zeros((2, 2), np.float32), np.array([[3, 4], [0, 0]], np.float32)
    assert distances(left, right).tolist() == [5.0, 0.0]


def test_an_unknown_format_is_named():
    with pytest.raises(ValueError, match="delta format is 'fp8', expected one of fp32, fp16, int8"):
        check_format("fp8")


def test_a_digest_is_the_same_in_each_version() -> None:
    """Shards and replicas of two versions compare them during an update."""
    rows = np.array([[1, 2.5], [0.1, -4], [7, 7]], np.float32)
    chosen = np.array([True, False, True])
    assert digest_of_rows(7, np.array([3, 5, -9]), rows, chosen) == 12211258090597534934
