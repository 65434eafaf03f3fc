"""JSON values that follow one another, as Metarank reads them: a line each, or without anything between.

``curl -d @file`` leaves the ends of lines out, so a file of lines comes as ``{...}{...}``. Pure.
"""

import json
import re
from typing import Any, Final

import msgspec

from recsys.events.event_types import Rejected
from recsys.events.rejection import Unquoted

_SPACE: Final = re.compile(r"[ \t\r\n]*")
_FIND: Final = json.JSONDecoder()


def values_in(body: bytes, most: int) -> list[Any]:
    """The values, of which each is read as strictly as a body of one. Raises Rejected for what isn't JSON,
    for none, and for more than ``most``."""
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise _unread("body", error) from error
    found, at = list[Any](), _skipped(text, 0)
    while at < len(text):
        where = f"[{len(found)}]"
        if len(found) == most:
            raise Rejected(
                "body",
                Unquoted(f"more than {most} long"),
                f"at most {most} at a time: send it in parts",
            )
        try:  # the standard library says where a value ends; what it is, the strict one
            _, end = _FIND.raw_decode(text, at)
            found.append(msgspec.json.decode(text[at:end]))
        except (ValueError, msgspec.MsgspecError, RecursionError) as error:
            raise _unread(where, error) from error
        at = _skipped(text, end)
    if not found:
        raise Rejected("body", Unquoted("empty"), "JSON: a value, a list, or a value in each line")
    return found


def _skipped(text: str, at: int) -> int:
    there = _SPACE.match(text, at)
    return at if there is None else there.end()


def _unread(where: str, error: Exception) -> Rejected:
    return Rejected(
        where, Unquoted(f"not JSON: {error}"), "JSON: a value, a list, or a value in each line"
    )
