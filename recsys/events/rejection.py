"""Errors for rejected events, so that the sender can fix them: field, value, expectation.

Knows JSON and msgspec's messages, but no event types.
"""

import json
import math
import re
import reprlib
from typing import Any, Final

import msgspec

MAX_DEPTH: Final = 8
SHOWN: Final = 80  # maximal characters of a value and of a field's path

_NAMES: Final = {
    "int": "an integer", "str": "text", "float": "a number", "bool": "true or false", "null": "null",
    "bytes": "bytes in base64", "object": "a JSON object", "array": "a list",
}  # fmt: skip
_EXPECTED: Final = re.compile(r"Expected `([^`]*)`")
_REQUIRED: Final = re.compile(r"missing required field `([^`]*)`")
_STEP: Final = re.compile(r"\.?([^.\[\]]+)|\[(\d+)\]")


class Unquoted(str):
    """A value description that is shown without quotes."""


MISSING: Final = Unquoted("missing")


class Rejected(ValueError):
    """An event that can't be read: the field, its value, and the expectation."""

    def __init__(self, field: str, value: object, expected: str) -> None:
        self.field = field if len(field) <= SHOWN else field[: SHOWN - 3] + "..."
        self.value, self.expected = show(value), expected
        super().__init__(f"{self.field} is {self.value}, expected {expected}")


class _Repr(reprlib.Repr):
    """As JSON, for clients of any language. Bounded in depth, length and time, since values come from
    outside."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxdict, self.maxlist = 3, 4, 4
        self.maxstring = self.maxother = SHOWN

    def repr_str(self, x: str, level: int) -> str:
        return json.dumps(x if len(x) <= SHOWN - 2 else f"{x[: SHOWN - 5]}...", ensure_ascii=False)

    def repr_Unquoted(self, x: Unquoted, level: int) -> str:  # reprlib calls it by the type
        return str(x)

    def repr_NoneType(self, x: None, level: int) -> str:
        return "null"

    def repr_bool(self, x: bool, level: int) -> str:
        return str(x).lower()

    def repr_float(self, x: float, level: int) -> str:
        return json.dumps(x)

    def repr_tuple(self, x: tuple[object, ...], level: int) -> str:
        return self.repr_list(list(x), level)

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to print integers of more than 4,300 digits.
        return repr(x) if x.bit_length() <= 128 else f"an integer of {x.bit_length()} bits"

    def repr_bytes(self, x: bytes, level: int) -> str:
        return repr(x[:SHOWN])


_repr = _Repr()


def show(value: object) -> str:
    """The value in at most 80 characters, whatever it is."""
    shown = _repr.repr(value).encode("utf-8", "backslashreplace").decode()
    return shown if len(shown) <= SHOWN else shown[: SHOWN - 3] + "..."


def check_values(raw: dict[str, Any]) -> None:
    """Rejects JSON values that the log or arithmetic can't handle: NaN, infinities, integers of more than 64
    bits, invalid Unicode, nesting of more than eight levels."""
    fault = _fault(raw, 1)
    if fault is not None:
        steps, value, expected = fault
        path = "".join(reversed(steps)).removeprefix(".")
        raise Rejected(path or "event", value, expected)


def _fault(value: object, depth: int) -> tuple[list[str], object, str] | None:
    """The first fault: its path, innermost step first; the value; what was expected."""
    if isinstance(value, str):
        return None if _is_unicode(value) else ([], value, "text in Unicode: it has half a pair")
    if isinstance(value, int):
        inside = -(2**63) <= value < 2**63
        return None if inside else ([], value, "an integer of at most 64 bits")
    if isinstance(value, float):
        return None if math.isfinite(value) else ([], value, "a finite number")
    if value is None:
        return None
    if isinstance(value, dict | list | tuple) and depth > MAX_DEPTH:
        return [], value, f"at most {MAX_DEPTH} levels of nesting"
    if isinstance(value, dict):
        for name, inner in value.items():
            if not isinstance(name, str) or not _is_unicode(name):
                return [], name, "field names that are text in Unicode"
            if (fault := _fault(inner, depth + 1)) is not None:
                fault[0].append(f".{name}")
                return fault
        return None
    if isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            if (fault := _fault(inner, depth + 1)) is not None:
                fault[0].append(f"[{i}]")
                return fault
        return None
    return [], value, "a JSON value"


def _is_unicode(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def explain(raw: dict[str, Any], error: msgspec.ValidationError) -> Rejected:
    """Translates msgspec's message, with the value at its ``$.path``."""
    message, _, where = str(error).partition(" - at `")
    path = where.rstrip("`").removeprefix("$").removeprefix(".")
    if required := _REQUIRED.search(message):
        field = f"{path}.{required[1]}" if path else required[1]
        return Rejected(field, MISSING, "a value: the field is required")
    value: object = raw
    for name, index in _STEP.findall(path):
        if isinstance(value, dict) and name in value:
            value = value[name]
        elif isinstance(value, list | tuple) and index and int(index) < len(value):
            value = value[int(index)]
    expected = message[:1].lower() + message[1:]
    if types := _EXPECTED.search(message):
        expected = " or ".join(_NAMES.get(name, name) for name in types[1].split(" | "))
    if "base64" in message:
        expected = _NAMES["bytes"]
    return Rejected(path or "event", value, expected)
