"""HTTP client of the control room for the API: a kept connection, with a deadline for whole answers."""

import http.client
import math
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final
from urllib.parse import urlsplit

ANSWER_S: Final = 2.0
MAX_BYTES: Final = 4 << 20
_CHUNK: Final = 64 << 10


class ApiConnection:
    """GET over one connection, one call at a time. Raises OSError or http.client.HTTPException. ``headers``
    are asked for at each call."""

    def __init__(
        self, url: str, timeout_s: float = ANSWER_S,
        headers: Callable[[], Mapping[str, str]] = dict,
    ) -> None:  # fmt: skip
        self._headers = headers
        parts = urlsplit(url)
        self._connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout_s)
        self._timeout_s = timeout_s
        self._lock = threading.Lock()

    def get(self, path: str, until_s: float = math.inf) -> tuple[int, bytes]:
        """Returns status and body.

        Reopens a connection that the server has closed, once; doesn't retry after a timeout. ``until_s``: a
        deadline on the monotonic clock, for calls that share one.
        """
        until_s = min(until_s, time.monotonic() + self._timeout_s)
        with self._lock:
            try:
                return self._once(path, until_s)
            except TimeoutError:
                raise
            except (OSError, http.client.HTTPException):
                return self._once(path, until_s)

    def text(self, path: str, until_s: float = math.inf) -> str:
        """Returns the body of a 200 answer, else an empty string."""
        with suppress(OSError, http.client.HTTPException, UnicodeDecodeError):
            status, body = self.get(path, until_s=until_s)
            return body.decode() if status == 200 else ""
        return ""

    def _once(self, path: str, until_s: float) -> tuple[int, bytes]:
        try:
            self._set_timeout(until_s)
            self._connection.request("GET", path, headers=dict(self._headers()))
            answer = self._connection.getresponse()
            body = self._read_body(answer, until_s)
        except Exception:
            self._connection.close()  # otherwise late bytes would be taken for the next answer
            raise
        if len(body) > MAX_BYTES:
            self._connection.close()
            raise http.client.HTTPException(f"{path} has more than {MAX_BYTES} bytes")
        return answer.status, body

    def _read_body(self, answer: http.client.HTTPResponse, until_s: float) -> bytes:
        body = b""
        while len(body) <= MAX_BYTES:
            self._set_timeout(until_s)  # each chunk could take the whole timeout
            chunk = answer.read1(_CHUNK)
            if not chunk:
                if answer.length:  # announced bytes are missing
                    raise http.client.IncompleteRead(body, answer.length)
                break
            body += chunk
        return body

    def _set_timeout(self, until_s: float) -> None:
        left_s = until_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("no time is left for an answer")
        self._connection.timeout = left_s
        if self._connection.sock is not None:
            self._connection.sock.settimeout(left_s)
