"""The Python client: one method a route, JSON over HTTP, values of ``recsys.events.event_types`` in, typed answers out.

It knows nothing of models or logs. Events get an ``event_id`` before the first try, so that sending them
again after a lost answer does no harm; a request for a list isn't repeated, since each one is an impression.
"""

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from recsys.events.event_types import ClientEvent, Engagement, Stamp
from recsys.events.hashing import Id

BATCH: Final = 500  # events, items or users of one request: the server takes no more
ATTEMPTS: Final = 5
FIRST_WAIT_S: Final = 0.2
LONGEST_WAIT_S: Final = 5.0
_JSON: Final = {"content-type": "application/json"}
_PASSING: Final = frozenset({408, 425, 429, 500, 502, 503, 504})

T = TypeVar("T")


class Recommended(msgspec.Struct, frozen=True, kw_only=True):
    """One item of an answer. Predictions and reasons are there where ``explain`` was asked for."""

    item_id: Id
    score: float | None = None
    rank: int = 0
    sources: list[str] = []
    propensity: float = 1.0
    predictions: dict[str, float] | None = None
    reasons: list[dict[str, Any]] | None = None
    fields: dict[str, Any] = {}


class Recommendations(msgspec.Struct, frozen=True, kw_only=True):
    """A list as served, with the stamp of what it was made from and the stages that it had to do without."""

    request_id: str
    items: list[Recommended]
    stamp: Stamp | None = None
    took_ms: float = 0.0
    degraded: list[str] = []


class Outcome(msgspec.Struct, frozen=True):
    """What became of one event: accepted, duplicate or rejected (then ``error`` says why)."""

    status: str
    error: Any = None


class Receipt(msgspec.Struct, frozen=True):
    """What became of a batch: ``results`` are in the order of the events that were sent."""

    accepted: int
    results: list[Outcome]

    @property
    def rejected(self) -> list[int]:
        """Positions of the events that the server refused."""
        return [i for i, one in enumerate(self.results) if one.status == "rejected"]


class ApiError(Exception):
    """The server didn't do it. ``status`` is 0 where no answer came, ``passing`` where later may work."""

    def __init__(
        self, method: str, path: str, status: int, detail: str, retry_after_s: float = 0.0
    ) -> None:
        self.status, self.detail, self.retry_after_s = status, detail, retry_after_s
        self.passing = status == 0 or status in _PASSING
        what = f"status {status}" if status else "no answer"
        hint = "try again later" if self.passing else "trying again won't help"
        super().__init__(f"{method} {path}: {what} ({detail[:300]}), expected a 2xx answer; {hint}")


class Client:
    """Talks to one server. Use it as a context manager, or call ``close``.

    ``admin_key`` is needed for items and users only; on a laptop it stands in ``state/run/admin.key``.
    ``clock_ms``, ``sleep`` and ``transport`` are handed in by tests.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        admin_key: str | None = None,
        timeout_s: float = 5.0,
        headers: Mapping[str, str] | None = None,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        sleep: Callable[[float], None] = time.sleep,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._clock_ms, self._sleep = clock_ms, sleep
        sent = dict(headers or {}) | ({"x-admin-key": admin_key} if admin_key else {})
        self._http = httpx.Client(
            base_url=url, timeout=timeout_s, headers=sent, transport=transport
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def recommend(
        self,
        user_id: Id,
        n: int = 10,
        *,
        surface: str = "feed",
        context: Mapping[str, Any] | None = None,
        exclude_ids: Sequence[Id] = (),
        candidate_ids: Sequence[Id] | None = None,
        explain: bool = False,
    ) -> Recommendations:
        """A ranked list for a user; ``candidate_ids`` ranks those instead of retrieving. Raises ApiError."""
        request = {
            "user_id": user_id, "n": n, "surface": surface, "context": dict(context or {}),
            "exclude_ids": list(exclude_ids), "explain": explain,
            "candidate_ids": None if candidate_ids is None else list(candidate_ids),
        }  # fmt: skip
        return self._ask("POST", "/v1/recommend", Recommendations, request)

    def send_events(self, events: Sequence[ClientEvent]) -> Receipt:
        """Sends engagements in batches, again until they are taken. Raises ApiError when it gives up.

        Rejected events don't raise: look at the receipt (items and users have methods of their own and are
        rejected here). Those of earlier batches stay taken.
        """
        return self._in_batches("events", [_with_id(event) for event in events])

    def engage(self, answer: Recommendations, user_id: Id, item_id: Id, kind: str,
               watch_ms: int | None = None, surface: str = "feed") -> Receipt:  # fmt: skip
        """Says what a user did with one item of an answer: the short way to one engagement."""
        event = Engagement(
            time_ms=self._clock_ms(), request_id=answer.request_id, user_id=user_id, item_id=item_id,
            kind=kind, watch_ms=watch_ms, surface=surface,
        )  # fmt: skip
        return self.send_events([event])

    def upsert_items(self, items: Mapping[Id, Mapping[str, Any]]) -> Receipt:
        """Publishes or changes items: fields by id, replacing what was there. Needs the admin key."""
        now_ms = self._clock_ms()
        return self._in_batches(
            "items", [{"item_id": i, "fields": f, "time_ms": now_ms} for i, f in items.items()]
        )

    def upsert_users(self, users: Mapping[Id, Mapping[str, Any]]) -> Receipt:
        """Sets profiles: fields by id, replacing what was there. Needs the admin key."""
        now_ms = self._clock_ms()
        return self._in_batches(
            "users", [{"user_id": u, "fields": f, "time_ms": now_ms} for u, f in users.items()]
        )

    def delete_item(self, item_id: Id) -> Receipt:
        """Takes an item away; it is recommended no more. Needs the admin key."""
        return self._insist("DELETE", f"/v1/items/{quote(str(item_id), safe='')}")

    def delete_user(self, user_id: Id) -> Receipt:
        """Makes the system forget a user. Needs the admin key."""
        return self._insist("DELETE", f"/v1/users/{quote(str(user_id), safe='')}")

    def session(self, user_id: Id) -> dict[str, Any]:
        """What is known of a user right now, as the server tells it. Raises ApiError."""
        return self._ask("GET", f"/v1/sessions/{quote(str(user_id), safe='')}", dict[str, Any])

    def status(self) -> dict[str, Any]:
        """Which version answers, and how fresh it is. Raises ApiError."""
        return self._ask("GET", "/v1/status", dict[str, Any])

    def health(self) -> bool:
        """Whether the server is up and ready to answer; False too where nothing listens."""
        try:
            return self._http.get("/readyz").is_success
        except httpx.TransportError:
            return False

    def _in_batches(self, what: str, values: Sequence[object]) -> Receipt:
        results: list[Outcome] = []
        accepted = 0
        for start in range(0, len(values), BATCH):
            body = {what: values[start : start + BATCH]}
            receipt = self._insist("POST", f"/v1/{what}", body)
            accepted += receipt.accepted
            results.extend(receipt.results)
        return Receipt(accepted, results)

    def _insist(self, method: str, path: str, body: object = None) -> Receipt:
        """Asks again with growing waits while the failure may pass; the server's Retry-After is kept to."""
        for attempt in range(ATTEMPTS - 1):
            try:
                return self._ask(method, path, Receipt, body)
            except ApiError as error:
                if not error.passing:
                    raise
                grown_s = FIRST_WAIT_S * 2**attempt
                self._sleep(min(LONGEST_WAIT_S, max(grown_s, error.retry_after_s)))
        return self._ask(method, path, Receipt, body)

    def _ask(self, method: str, path: str, answer: type[T], body: object = None) -> T:
        content = None if body is None else msgspec.json.encode(body)
        try:
            response = self._http.request(method, path, content=content, headers=_JSON)
        except httpx.TransportError as error:
            raise ApiError(method, path, 0, f"{type(error).__name__}: {error}") from error
        if not response.is_success:
            asked_s = response.headers.get("retry-after", "")
            wait_s = float(asked_s) if asked_s.isdigit() else 0.0
            raise ApiError(method, path, response.status_code, response.text, wait_s)
        try:
            return msgspec.json.decode(response.content, type=answer)
        except msgspec.MsgspecError as error:
            detail = f"the answer isn't what this client knows: {error}"
            raise ApiError(method, path, response.status_code, detail) from error


def _with_id(event: ClientEvent) -> ClientEvent:
    return event if event.event_id else msgspec.structs.replace(event, event_id=uuid.uuid4().hex)
