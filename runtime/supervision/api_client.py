"""HTTP client of the system's own tools for its API: a kept connection, with a deadline for whole answers."""

import math
import time
from typing import Any, Final

import httpx
import msgspec

from recsys.config.system_config import Config
from runtime.supervision.launch_plan import admin_headers, local_api_url

ANSWER_S: Final = 2.0
MAX_BYTES: Final = 4 << 20


class ApiConnection:
    """GET with the admin key, which is read at each call. ``get`` raises httpx.RequestError."""

    def __init__(self, config: Config, timeout_s: float = ANSWER_S) -> None:
        self._state, self._timeout_s = config.state, timeout_s
        self._client = httpx.Client(base_url=local_api_url(config), trust_env=False)

    def get(self, path: str, until_s: float = math.inf) -> tuple[int, bytes]:
        """Returns status and body.

        Asks again, once, where a connection that the server has closed was used; not after a timeout.
        ``until_s``: a deadline on the monotonic clock, for calls that share one.
        """
        until_s = min(until_s, time.monotonic() + self._timeout_s)
        try:
            return self._once(path, until_s)
        except (httpx.NetworkError, httpx.RemoteProtocolError):
            return self._once(path, until_s)

    def json_object(self, path: str, until_s: float = math.inf) -> dict[str, Any]:
        """Returns the object in a 200 answer; an empty one where there is none."""
        try:
            value = msgspec.json.decode(self.text(path, until_s) or "{}")
        except msgspec.DecodeError:
            return {}
        return value if isinstance(value, dict) else {}

    def text(self, path: str, until_s: float = math.inf) -> str:
        """Returns the body of a 200 answer, else an empty string."""
        try:
            status, body = self.get(path, until_s)
            return body.decode() if status == 200 else ""
        except (httpx.RequestError, UnicodeDecodeError):
            return ""

    def _once(self, path: str, until_s: float) -> tuple[int, bytes]:
        body, headers = b"", admin_headers(self._state)
        with self._client.stream("GET", path, headers=headers, timeout=_left_s(until_s)) as answer:
            for chunk in answer.iter_bytes():
                body += chunk
                _left_s(until_s)
                if len(body) > MAX_BYTES:
                    raise httpx.RequestError(f"{path} has more than {MAX_BYTES} bytes")
        return answer.status_code, body


def _left_s(until_s: float) -> float:
    if (left_s := until_s - time.monotonic()) <= 0:
        raise httpx.ReadTimeout("no time is left for an answer")
    return left_s
