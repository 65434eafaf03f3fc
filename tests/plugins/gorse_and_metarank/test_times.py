"""Time stamps and durations of foreign clients."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugins.gorse_and_metarank.values import seconds_of, text_of, time_ms_of
from recsys.events.event_types import Rejected

NOW_MS = 1_790_000_000_000


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("1599391467000", 1_599_391_467_000),
        (1_599_391_467_000, 1_599_391_467_000),
        (1_599_391_467_000.0, 1_599_391_467_000),
        ("2022-06-22T11:21:39Z", 1_655_896_899_000),
        ("2022-06-22T13:21:39+02:00", 1_655_896_899_000),
        ("2022-06-22 11:21:39", 1_655_896_899_000),
        ("2020-02-02T20:20:02.02Z", 1_580_674_802_020),
        ("2022-02-24", 1_645_660_800_000),
        ("20220224", 1_645_660_800_000),
        (NOW_MS + 5_000, NOW_MS + 5_000),
    ],
)
def test_each_documented_form_is_read(value: object, expected: int) -> None:
    assert time_ms_of(value, "t", NOW_MS) == expected


@pytest.mark.parametrize(
    "value",
    [None, "", "insect", True, [], -1, "1960-01-01", float("nan"), float("inf"), NOW_MS + 5_001, "9" * 5_000],
)
def test_what_is_no_time_of_the_past_is_refused(value: object) -> None:
    with pytest.raises(Rejected, match="t is"):
        time_ms_of(value, "t", NOW_MS)


@given(st.integers(0, NOW_MS))
def test_a_time_as_text_is_the_same_time(time_ms: int) -> None:
    assert time_ms_of(text_of(time_ms), "t", NOW_MS) == time_ms


def test_durations() -> None:
    told = {"0": 0.0, "10s": 10.0, "10m": 600.0, "1h0m30s": 3630.0, "1.5s": 1.5, "30ms": 0.03}
    assert {text: seconds_of(text, "d") for text in told} == pytest.approx(told)
    for wrong in ("", "10", "m", "10 s", "25h", "-1s", "1d"):
        with pytest.raises(Rejected):
            seconds_of(wrong, "d")
