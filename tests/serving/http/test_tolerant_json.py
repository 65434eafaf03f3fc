"""A bad event in a body costs itself alone."""

import math

import pytest

from serving.http.tolerant_json import read_events


@pytest.mark.parametrize(
    ("bad", "check"),
    [
        (b'{"watch_ms": NaN}', lambda found: math.isnan(found["watch_ms"])),
        (b'{"watch_ms": 1e999}', lambda found: found["watch_ms"] == math.inf),
        (b'{"note": "\\ud800"}', lambda found: found == {"note": "\ud800"}),
        (b'{"note": ' + b"[" * 5_000 + b"]" * 5_000 + b"}", lambda found: isinstance(found, str)),
        (b'{"kind": view}', lambda found: isinstance(found, str)),
        (b'{"note": "\xff"}', lambda found: isinstance(found, str)),
    ],
)
def test_the_others_are_read(bad, check):
    body = b'{"events": [{"a": "x,]\\"}"}, ' + bad + b', {"b": [1, {"c": 2}]}]}'
    found = read_events(body)
    assert found is not None
    first, middle, last = found["events"]
    assert first == {"a": 'x,]"}'} and last == {"b": [1, {"c": 2}]}
    assert check(middle)


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b'{"events": 3}', b'{"events": [1]', b'{"events": [1]] }', b'{"events": [[1]}',
     b'{"other": [1]}', b'{"events": [1], "more": 2}'],
)  # fmt: skip
def test_what_is_no_list_of_events_is_refused_whole(body):
    assert read_events(body) is None
