"""Values that follow one another are read one by one, as strictly as one alone."""

import json
import math
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugins.gorse_and_metarank.values import optional_id, parse_json_sequence
from recsys.events.event_types import Rejected

LEAVES = st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(max_size=5)
OBJECTS = st.dictionaries(
    st.text(max_size=5), LEAVES | st.lists(LEAVES, max_size=3) | st.just("}\n{"), max_size=3
)


@given(st.lists(OBJECTS, min_size=1, max_size=6), st.sampled_from(["\n", "\r\n", "", " \t"]))
def test_objects_are_read_whatever_stands_between(values: list[Any], between: str) -> None:
    text = between.join(json.dumps(value, ensure_ascii=False) for value in values) + between
    assert parse_json_sequence(text.encode(), 6) == values


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"a": 1}\n{"a": NaN}', "[1]"),
        (b'{"a": 1}\n{"a": 1', "[1]"),
        (b'{"a": 1},{"a": 2}', "[1]"),
        (b'{"a": "\xff"}', "[0]"),
        (b'{"a": ' + b"[" * 100_000, "[0]"),
        (b'{"a": 1e999}', "[0]"),
        (b"{}" * 4, "body"),
        (b"", "body"),
        (b" \n ", "body"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(body: bytes, field: str) -> None:
    with pytest.raises(Rejected) as refused:
        parse_json_sequence(body, 3)
    assert refused.value.field == field and refused.value.expected


def test_numbers_stay_what_they_are() -> None:
    [found] = parse_json_sequence(b'{"a": 0.5, "b": 7}', 1)
    assert found == {"a": 0.5, "b": 7} and isinstance(found["b"], int) and math.isfinite(found["a"])


def test_a_body_of_spaces_takes_no_time() -> None:
    began_s = time.process_time()
    with pytest.raises(Rejected, match="empty"):
        parse_json_sequence(b" " * 1_000_000, 3)
    assert time.process_time() - began_s < 0.1


@pytest.mark.parametrize("body", [b'"' * 1_000_000, b"[" * 1_000_000, b'{"a": "' + b'\\"' * 499_000])
def test_a_hostile_body_is_refused_after_one_look(body: bytes) -> None:
    with pytest.raises(Rejected):
        parse_json_sequence(body, 500)


@pytest.mark.parametrize("value", ["a\nb", "a\n", "\x00", "\x7f"])
def test_an_id_has_no_control_character(value: str) -> None:
    with pytest.raises(Rejected, match="without control characters"):
        optional_id({"user": value}, "user", "[2]")
