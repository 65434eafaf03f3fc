"""The API as the control room asks it: a connection that stays open, and a limit on how long answers take."""

import http.client
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Final
from urllib.parse import urlsplit

ANSWER_S: Final = 2.0
MOST_BYTES: Final = 4 << 20


class Door:
    """GET over one connection; one call at a time. Raises OSError or http.client.HTTPException."""

    def __init__(self, url: str, timeout_s: float = ANSWER_S) -> None:
        its = urlsplit(url)
        self._connection = http.client.HTTPConnection(its.hostname or "", its.port, timeout_s)
        self._lock = threading.Lock()

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> tuple[int, bytes]:
        """Status and body. A connection that the other side has closed meanwhile is opened again, once."""
        with self._lock:
            try:
                return self._once(path, headers or {})
            except (OSError, http.client.HTTPException):
                self._connection.close()
            return self._once(path, headers or {})

    def text(self, path: str) -> str:
        """A body; empty where there is none to be had."""
        with suppress(OSError, http.client.HTTPException, UnicodeDecodeError):
            status, body = self.get(path)
            return body.decode() if status == 200 else ""
        return ""

    def _once(self, path: str, headers: Mapping[str, str]) -> tuple[int, bytes]:
        try:
            self._connection.request("GET", path, headers=dict(headers))
            answer = self._connection.getresponse()
            body = answer.read(MOST_BYTES + 1)
        except Exception:
            self._connection.close()  # else what comes late is taken for the next answer
            raise
        if len(body) > MOST_BYTES:
            self._connection.close()
            raise http.client.HTTPException(f"{path} has more than {MOST_BYTES} bytes")
        return answer.status, body
