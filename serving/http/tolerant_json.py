"""One bad event must not cost the good ones beside it: a body that isn't strict JSON, read event by event.

Called only where strict reading has failed. The array of events is cut into its elements by brackets and
strings alone, without recursion; each element is then read by itself. What NaN, 1e999, half a surrogate or a
thousand brackets make of it is for the check of each event to refuse, by name.
"""

import json
import re
from typing import Any, Final

import msgspec

_TOKEN: Final = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{},]', re.DOTALL)
_OPEN, _CLOSE = frozenset(b"[{"), frozenset(b"]}")


def read_events(body: bytes, field: str = "events") -> dict[str, list[Any]] | None:
    """``{field: elements}`` of an object with that one array; None where the body isn't even that.

    An element that is no JSON at all is returned as its text.
    """
    opening = re.fullmatch(
        rb'\s*\{\s*"' + field.encode() + rb'"\s*:\s*\[(.*)\]\s*\}\s*', body, re.DOTALL
    )
    if opening is None:
        return None
    elements = _split(opening.group(1))
    return None if elements is None else {field: [_read(element) for element in elements]}


def _split(inside: bytes) -> list[bytes] | None:
    """The elements between the commas that stand in no bracket and no string."""
    depth, start, parts = 0, 0, []
    for token in _TOKEN.finditer(inside):
        first = token.group()[0]
        if first in _OPEN:
            depth += 1
        elif first in _CLOSE:
            depth -= 1
            if depth < 0:
                return None
        elif first == ord(",") and depth == 0:
            parts.append(inside[start : token.start()])
            start = token.end()
    return None if depth else [*parts, inside[start:]]


def _read(element: bytes) -> Any:
    try:
        return msgspec.json.decode(element)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        pass
    try:
        return json.loads(element)  # takes NaN and 1e999, so that the field can be named
    except (ValueError, RecursionError):
        return element[:200].decode("utf-8", "replace")
