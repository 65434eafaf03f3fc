"""The API as the control room asks it: a connection that stays open, and a limit on how long answers take."""

import http.client
import math
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Final
from urllib.parse import urlsplit

ANSWER_S: Final = 2.0
MOST_BYTES: Final = 4 << 20
_PIECE: Final = 64 << 10


class Door:
    """GET over one connection; one call at a time. Raises OSError or http.client.HTTPException."""

    def __init__(self, url: str, timeout_s: float = ANSWER_S) -> None:
        its = urlsplit(url)
        self._connection = http.client.HTTPConnection(its.hostname or "", its.port, timeout_s)
        self._timeout_s = timeout_s
        self._lock = threading.Lock()

    def get(
        self, path: str, headers: Mapping[str, str] | None = None, until_s: float = math.inf
    ) -> tuple[int, bytes]:
        """Status and body. A connection that the other side has closed meanwhile is opened again, once; who
        doesn't answer isn't asked again. ``until_s``: by the monotonic clock, for calls that share it."""
        until_s = min(until_s, time.monotonic() + self._timeout_s)
        with self._lock:
            try:
                return self._once(path, headers or {}, until_s)
            except TimeoutError:
                raise
            except (OSError, http.client.HTTPException):
                return self._once(path, headers or {}, until_s)

    def text(self, path: str, until_s: float = math.inf) -> str:
        """A body; empty where there is none to be had."""
        with suppress(OSError, http.client.HTTPException, UnicodeDecodeError):
            status, body = self.get(path, until_s=until_s)
            return body.decode() if status == 200 else ""
        return ""

    def _once(self, path: str, headers: Mapping[str, str], until_s: float) -> tuple[int, bytes]:
        try:
            self._wait_at_most(until_s)
            self._connection.request("GET", path, headers=dict(headers))
            answer = self._connection.getresponse()
            body = self._body_of(answer, until_s)
        except Exception:
            self._connection.close()  # else what comes late is taken for the next answer
            raise
        if len(body) > MOST_BYTES:
            self._connection.close()
            raise http.client.HTTPException(f"{path} has more than {MOST_BYTES} bytes")
        return answer.status, body

    def _body_of(self, answer: http.client.HTTPResponse, until_s: float) -> bytes:
        body = b""
        while len(body) <= MOST_BYTES:
            self._wait_at_most(until_s)  # each piece could take as long again
            piece = answer.read1(_PIECE)
            if not piece:
                if answer.length:  # what was announced and didn't come
                    raise http.client.IncompleteRead(body, answer.length)
                break
            body += piece
        return body

    def _wait_at_most(self, until_s: float) -> None:
        left_s = until_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("there is no time left for an answer")
        self._connection.timeout = left_s
        if self._connection.sock is not None:
            self._connection.sock.settimeout(left_s)
