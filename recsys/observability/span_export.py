"""Span exporters, both of OTLP in JSON: a file of lines for a laptop, and a receiver over HTTP."""

import fcntl
import gzip
import os
import ssl
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import msgspec

from recsys.observability.spans import Span, otlp

_TIMEOUT_S: Final = 5.0
_PRIVATE: Final = partial(os.open, mode=0o600)


class SpanFile:
    """Appends batches of spans to a file, one OTLP request per line, under a lock of all processes. A full
    file is renamed to NAME.1, replacing the previous one. Raises OSError on failure."""

    def __init__(self, path: str | Path, max_bytes: int, resource: Mapping[str, str]) -> None:
        self._path, self._max_bytes, self._resource = Path(path), max_bytes, resource

    def __call__(self, spans: Sequence[Span]) -> None:
        line = msgspec.json.encode(otlp(spans, self._resource)) + b"\n"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        beside = self._path.with_name(f".{self._path.name}.lock")
        with open(beside, "ab", opener=_PRIVATE) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._make_room(len(line))
            with open(self._path, "ab", buffering=0, opener=_PRIVATE) as file:
                file.write(line)

    def _make_room(self, more: int) -> None:
        try:
            full = self._path.stat().st_size + more > self._max_bytes
        except FileNotFoundError:
            return
        if full:
            os.replace(self._path, self._path.with_name(f"{self._path.name}.1"))


class SpanReceiver:
    """Posts batches of spans to a receiver. Reads OpenTelemetry's variables OTEL_EXPORTER_OTLP_HEADERS,
    _CERTIFICATE and _COMPRESSION. Raises an error if spans are not accepted."""

    def __init__(self, endpoint: str, resource: Mapping[str, str]) -> None:
        self._endpoint, self._resource = endpoint, resource
        self._client: Any = None  # made in the thread that sends: importing httpx takes a moment

    def __call__(self, spans: Sequence[Span]) -> None:
        self._client = self._client or _client()
        body = msgspec.json.encode(otlp(spans, self._resource))
        if self._client.headers.get("content-encoding") == "gzip":
            body = gzip.compress(body)
        answer = self._client.post(self._endpoint, content=body)
        if not answer.is_success:
            reason = f"{self._endpoint} took none of {len(spans)} spans: {answer.status_code}"
            raise ConnectionError(reason)


def _client() -> Any:
    import httpx

    headers = {"content-type": "application/json"}
    if _variable("COMPRESSION") == "gzip":
        headers["content-encoding"] = "gzip"
    for pair in filter(None, _variable("HEADERS").split(",")):
        name, _, value = pair.partition("=")
        headers[unquote(name).strip()] = unquote(value).strip()
    tls = ssl.create_default_context(cafile=_variable("CERTIFICATE") or None)
    return httpx.Client(headers=headers, verify=tls, timeout=_TIMEOUT_S)


def _variable(name: str) -> str:
    """Value of a variable for traces, or else for all signals; empty without one."""
    prefix = "OTEL_EXPORTER_OTLP_"
    return os.environ.get(f"{prefix}TRACES_{name}") or os.environ.get(prefix + name, "")
