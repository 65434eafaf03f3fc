"""Python clients of the HTTP API, ``Client`` and ``AsyncClient``, for most routes:
``recsys.events.event_types`` in, typed answers out.

Events get an ``event_id`` before the first attempt, so that retries after a lost answer are harmless. A
request for a list isn't retried, since each one is an impression.
"""

import asyncio
import random
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial, wraps
from typing import Any, Concatenate, Final, ParamSpec, Self, TypeVar
from urllib.parse import quote, urlencode

import httpx
import msgspec

from recsys.clock import machine_ms
from recsys.events.event_types import SEEN, ClientEvent, Engagement, Stamp
from recsys.events.hashing import Id

BATCH: Final = 500  # maximal events, items or users per request
MAX_BYTES: Final = 400_000  # of them as JSON; the server takes 1 MB …
_VALUE_BYTES: Final = 11  # … of at most 40,000 values, so that each is as large as this or larger
ATTEMPTS: Final = 5
FIRST_WAIT_S: Final = 0.2
LONGEST_WAIT_S: Final = 5.0
_JSON: Final = {"content-type": "application/json"}
_TRANSIENT: Final = frozenset({408, 425, 429, 500, 502, 503, 504, 507})
_TOKENS: Final = 10_000  # of the newest answers

P = ParamSpec("P")
T = TypeVar("T")


class Recommended(msgspec.Struct, frozen=True, kw_only=True):
    """One item of an answer. Predictions and reasons need ``explain``."""

    item_id: Id
    score: float | None = None
    rank: int = 0
    sources: list[str] = []
    propensity: float = 1.0
    predictions: dict[str, float] | None = None
    reasons: list[dict[str, Any]] | None = None
    fields: dict[str, Any] = {}


class Recommendations(msgspec.Struct, frozen=True, kw_only=True):
    """A list as served, with its stamp; ``degraded`` names the stages that were skipped. ``token`` proves
    that the server made the list: engagements carry it. ``warnings``: candidates that it lacks, with the
    reason."""

    request_id: str
    token: str = ""
    items: list[Recommended]
    stamp: Stamp | None = None
    took_ms: float = 0.0
    degraded: list[str] = []
    warnings: list[dict[str, Any]] = []


class _ItemList(msgspec.Struct):
    items: list[Recommended]


class Outcome(msgspec.Struct, frozen=True):
    """Result of one event: accepted, duplicate or rejected (with ``error``). ``warning``: what may be wrong
    in an accepted one, e.g. a misspelt field."""

    status: str
    error: Any = None
    warning: Any = None


class Receipt(msgspec.Struct, frozen=True):
    """Results of a batch, in the order of the events. ``unproven``: accepted events that count for nothing,
    since they lack the token of a list in which the user saw the item."""

    accepted: int
    results: list[Outcome]
    unproven: int = 0

    @property
    def rejected(self) -> list[int]:
        """Positions of rejected events."""
        return [i for i, result in enumerate(self.results) if result.status == "rejected"]


class ApiError(Exception):
    """A request failed. ``status`` is 0 without an answer; ``passing``: a retry may succeed."""

    def __init__(self, method: str, path: str, status: int, detail: str, retry_after_s: float = 0.0) -> None:
        self.status, self.detail, self.retry_after_s = status, detail, retry_after_s
        self.passing = status == 0 or status in _TRANSIENT
        answer = f"status {status}" if status else "no answer"
        hint = "try again later" if self.passing else "trying again won't help"
        about = f"{answer} ({detail[:300]}), expected a 2xx answer; {hint}"
        super().__init__(f"{method} {path}: {about}")


class Client:
    """Client of one server. Use it as a context manager, or call ``close``.

    ``key``: an API key or a user token. ``admin_key`` is needed for items and users only; on a laptop it is
    in ``state/run/admin.key``.
    ``clock_ms``, ``sleep``, ``draw`` (a random number in [0, 1)) and ``transport`` are for tests. Threads may
    share a client.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        key: str | None = None,
        admin_key: str | None = None,
        timeout_s: float = 5.0,
        headers: Mapping[str, str] | None = None,
        clock_ms: Callable[[], int] = machine_ms,
        sleep: Callable[[float], None] = time.sleep,
        draw: Callable[[], float] = random.random,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._clock_ms, self._sleep, self._draw = clock_ms, sleep, draw
        self._tokens = OrderedDict[str, str]()
        all_headers = dict(headers or {}) | ({"x-admin-key": admin_key} if admin_key else {})
        all_headers |= {"authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(base_url=url, timeout=timeout_s, headers=all_headers, transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def recommend(
        self,
        user_id: Id,
        n: int | None = None,
        *,
        surface: str = "feed",
        context: Mapping[str, Any] | None = None,
        exclude_ids: Sequence[Id] = (),
        candidate_ids: Sequence[Id] | None = None,
        filters: Mapping[str, Any] | None = None,
        explain: bool = False,
        profiling: bool = True,
    ) -> Recommendations:
        """A ranked list for a user; ``candidate_ids`` replaces retrieval. ``filters``: a value, a list of
        values or a range with ``min`` and ``max`` by field of items. ``n``: default 10, or that of the
        surface. ``profiling``: whether profile and history may be used. Raises ApiError."""
        request = {
            "user_id": user_id, "surface": surface, "context": dict(context or {}),
            "exclude_ids": list(exclude_ids), "explain": explain,
            "candidate_ids": None if candidate_ids is None else list(candidate_ids),
        }  # fmt: skip
        request |= {"filters": dict(filters)} if filters else {}
        request |= {} if profiling else {"profiling": False}
        request |= {} if n is None else {"n": n}
        return self._asked("/v1/recommend", request)

    def rank(self, user_id: Id, candidate_ids: Sequence[Id], n: int = 100, *,
             surface: str = "feed", context: Mapping[str, Any] | None = None,
             filters: Mapping[str, Any] | None = None, log: bool = True) -> Recommendations:  # fmt: skip
        """Candidates for a user, best first. ``log``: whether the user will see the list. Raises ApiError."""
        request = {
            "user_id": user_id, "candidate_ids": list(candidate_ids), "n": n, "surface": surface,
            "context": dict(context or {}), "filters": dict(filters or {}), "log": log,
        }  # fmt: skip
        return self._asked("/v1/rank", request)

    def items(self, order: str, n: int = 10, filters: Mapping[str, Any] | None = None) -> list[Recommended]:
        """Items that are the same for all: "popular", "latest" or "trending". Raises ApiError."""
        query = urlencode({"n": n, "filters": msgspec.json.encode(filters or {})})
        return self._ask("GET", f"/v1/{order}?{query}", _ItemList).items

    def similar(
        self, item_id: Id, n: int = 10, filters: Mapping[str, Any] | None = None
    ) -> list[Recommended]:
        """Items nearest to one. Raises ApiError."""
        return self.items(f"items/{quote(str(item_id), safe='')}/similar", n, filters)

    def _asked(self, path: str, request: Mapping[str, Any]) -> Recommendations:
        answer = self._ask("POST", path, Recommendations, request)
        self._tokens[answer.request_id] = answer.token
        if len(self._tokens) > _TOKENS:
            self._tokens.popitem(last=False)
        return answer

    def send_events(self, events: Sequence[ClientEvent]) -> Receipt:
        """Sends engagements in batches, with retries. Raises ApiError when it gives up; earlier batches stay
        accepted.

        Engagements with a list that this client got receive its token. Rejected events don't raise: check the
        receipt. Items and users are rejected here; they have their own methods.
        """
        return self._in_batches("events", [self._prepared(event) for event in events])

    def engage(self, answer: Recommendations, user_id: Id, item_id: Id, kind: str,
               watch_ms: int | None = None, surface: str = "feed",
               value: float | msgspec.UnsetType = msgspec.UNSET) -> Receipt:  # fmt: skip
        """Sends one engagement of a user with an item of an answer. ``value``: such as an amount."""
        event = Engagement(
            time_ms=self._clock_ms(), request_id=answer.request_id, user_id=user_id, item_id=item_id,
            kind=kind, watch_ms=watch_ms, surface=surface, value=value,
        )  # fmt: skip
        return self.send_events([event])

    def seen(self, answer: Recommendations, user_id: Id, surface: str = "feed") -> Receipt:
        """Confirms that a list was on the user's screen, so that it counts as shown with ``shown: list``. An
        engagement with one of its items confirms it, too. An empty list sends nothing."""
        if not answer.items:
            return Receipt(0, [])
        return self.engage(answer, user_id, answer.items[0].item_id, SEEN, surface=surface)

    def set_preference(self, user_id: Id, field: str, value: Id, wish: str) -> Receipt:
        """Notes a viewer's wish (block, mute, less or none) about ``item_id``, or a field of items."""
        wished = {"user_id": user_id, "field": field, "value": value, "wish": wish}
        return self._in_batches("preferences", [wished | {"time_ms": self._clock_ms()}])

    def upsert_items(self, items: Mapping[Id, Mapping[str, Any]]) -> Receipt:
        """Publishes or changes items: fields by id, replacing the old ones. Needs the admin key."""
        return self._upsert("items", "item_id", items)

    def upsert_users(self, users: Mapping[Id, Mapping[str, Any]]) -> Receipt:
        """Sets profiles: fields by id, replacing the old ones. Needs the admin key."""
        return self._upsert("users", "user_id", users)

    def delete_item(self, item_id: Id) -> Receipt:
        """Removes an item; it is no longer recommended. Needs the admin key."""
        return self._insist("DELETE", f"/v1/items/{quote(str(item_id), safe='')}")

    def delete_user(self, user_id: Id) -> Receipt:
        """Erases a user. Needs the admin key."""
        return self._insist("POST", "/v1/users/erase", {"user_id": user_id})

    def session(self, user_id: Id) -> dict[str, Any]:
        """The current session of a user. Raises ApiError."""
        return self._ask("GET", f"/v1/sessions/{quote(str(user_id), safe='')}", dict[str, Any])

    def status(self) -> dict[str, Any]:
        """The serving version and its freshness. Raises ApiError."""
        return self._ask("GET", "/v1/status", dict[str, Any])

    def health(self) -> bool:
        """Whether the server is ready to answer; False if nothing listens."""
        try:
            return self._http.get("/readyz").is_success
        except httpx.TransportError:
            return False

    def _upsert(self, kind: str, id_field: str, fields: Mapping[Id, Mapping[str, Any]]) -> Receipt:
        now_ms = self._clock_ms()
        values = [{id_field: i, "fields": f, "time_ms": now_ms} for i, f in fields.items()]
        return self._in_batches(kind, values)

    def _in_batches(self, kind: str, values: Sequence[object]) -> Receipt:
        results: list[Outcome] = []
        accepted = unproven = 0
        for batch in _batches(values):
            receipt = self._insist("POST", f"/v1/{kind}", {kind: batch})
            accepted += receipt.accepted
            unproven += receipt.unproven
            results.extend(receipt.results)
        return Receipt(accepted, results, unproven)

    def _prepared(self, event: ClientEvent) -> ClientEvent:
        """The event with an id and, for an engagement, the token of its list."""
        changes: dict[str, str] = {} if event.event_id else {"event_id": uuid.uuid4().hex}
        if isinstance(event, Engagement) and event.token is msgspec.UNSET:
            if token := self._tokens.get(event.request_id):
                changes["token"] = token
        return msgspec.structs.replace(event, **changes) if changes else event

    def _insist(self, method: str, path: str, body: object = None) -> Receipt:
        """Retries transient failures with growing waits, at least the server's Retry-After. Half of a wait is
        random, so that clients that failed together don't come back together."""
        for attempt in range(ATTEMPTS - 1):
            try:
                return self._ask(method, path, Receipt, body)
            except ApiError as error:
                if not error.passing:
                    raise
                grown_s, asked_s = FIRST_WAIT_S * 2**attempt, error.retry_after_s
                wait_s = max(grown_s * (1 + self._draw()) / 2, asked_s * (1 + self._draw() / 2))
                self._sleep(min(LONGEST_WAIT_S, wait_s))
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
            detail = f"the answer doesn't fit this client: {error}"
            raise ApiError(method, path, response.status_code, detail) from error


def _batches(values: Iterable[object]) -> Iterator[list[msgspec.Raw]]:
    """Batches that fit one request, as JSON; a larger value is a batch of its own."""
    batch, size = list[msgspec.Raw](), 0
    for encoded in map(msgspec.json.encode, values):
        own = max(len(encoded), _VALUE_BYTES * sum(map(encoded.count, (b",", b"[", b"{")))) + 1
        size += own
        if batch and (len(batch) == BATCH or size > MAX_BYTES):
            yield batch
            batch, size = [], own
        batch.append(msgspec.Raw(encoded))
    if batch:
        yield batch


def _in_thread(
    method: Callable[Concatenate[Client, P], T],
) -> Callable[Concatenate["AsyncClient", P], Coroutine[Any, Any, T]]:
    """The same method of an ``AsyncClient``."""

    @wraps(method)
    async def call(self: "AsyncClient", /, *args: P.args, **options: P.kwargs) -> T:
        run = partial(method, self._client, *args, **options)
        return await asyncio.get_running_loop().run_in_executor(self._threads, run)

    return call


class AsyncClient:
    """Client for asyncio: the methods of a ``Client``, which it closes, awaited.

    Each call runs in one of ``calls`` threads; further ones wait. A cancelled call ends by itself later. Use
    it as an async context manager, or await ``close``.
    """

    def __init__(self, client: Client, calls: int = 32) -> None:
        self._client = client
        self._threads = ThreadPoolExecutor(calls, "recsys-client")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Waits for calls under way."""
        await asyncio.to_thread(self._threads.shutdown)
        self._client.close()

    recommend = _in_thread(Client.recommend)
    rank = _in_thread(Client.rank)
    items = _in_thread(Client.items)
    similar = _in_thread(Client.similar)
    send_events = _in_thread(Client.send_events)
    engage = _in_thread(Client.engage)
    seen = _in_thread(Client.seen)
    set_preference = _in_thread(Client.set_preference)
    upsert_items = _in_thread(Client.upsert_items)
    upsert_users = _in_thread(Client.upsert_users)
    delete_item = _in_thread(Client.delete_item)
    delete_user = _in_thread(Client.delete_user)
    session = _in_thread(Client.session)
    status = _in_thread(Client.status)
    health = _in_thread(Client.health)
