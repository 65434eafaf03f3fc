"""Event types of the log. Everything else is a fold over them.

One definition serves the API (JSON), data sets (JSON Lines) and the log (MessagePack). Unknown fields are
ignored, so that the schema can grow; an unknown ``type`` is an error of that event. This module knows nothing
of features or models: an impression carries its features as opaque arrays (``recsys.features.feature_set``).
"""

import re
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from recsys.events.hashing import Id, digest_of
from recsys.events.rejection import MISSING, check_values, explain
from recsys.events.rejection import Rejected as Rejected
from recsys.log.compression import plain

ENGAGEMENT_KINDS: Final = (
    "view", "long_view", "click", "like", "follow", "comment", "share", "skip", "hide", "profile",
)  # fmt: skip
SEEN: Final = "seen"  # kind of an engagement that only says that the item's list was on screen
MAX_EVENT_BYTES: Final = 64 * 1024
MAX_FUTURE_MS: Final = 5_000
MAX_WATCH_MS: Final = 365 * 86_400_000
MAX_ID_LENGTH: Final = 256
MAX_TIME_MS: Final = 253_402_300_799_999  # end of the year 9999, the last date


class Stamp(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Versions of everything an answer was made from. ``step`` never decreases within a replica and epoch."""

    line: str = "main"
    epoch: int = 0
    step: int = 0
    catalogue_offset: int = 0
    item_state_offset: int = 0
    session_offset: int = 0
    policy: str = ""
    arms: dict[str, str] = {}
    index: str = ""  # the centroids and the number of lists searched; empty: exact search


class ServedItem(msgspec.Struct, kw_only=True, gc=False):
    """One item of an impression, at its rank in the list."""

    item_id: Id
    propensity: float = 1.0  # P(item at this rank | ranks above, policy)
    score: float | None = None  # the weighted sum of predicted engagements
    sources: list[str] = []


class RequestInputs(msgspec.Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """Inputs of an answer beside its stamp; with both it can be reconstructed.

    ``candidates``, ``source_floor``, ``stages``: as in ``serve`` at the time. ``session``: digest of the
    packed session, since the offset doesn't determine the item fields it was folded with; empty for an
    unknown user. ``item_state_from``: the first offset of ``item_state`` that the replica had read; -1 if
    later records were trimmed before it read them. ``counted``: next offsets of ``events``, by partition,
    that the item counters cover: with them the archive alone can recount. ``by_score``: nothing was sampled,
    the list is in order of scores. ``plain``: nothing of the viewer's profile and history was used.
    ``safety``: digest of the safety rules; empty without any. ``filters``: of the request.
    """

    n: int = 0
    exclude_ids: list[Id] = []
    candidate_ids: list[Id] | None = None
    candidates: int = 0
    source_floor: float = 1.0
    session: str = ""
    item_state_from: int = 0
    counted: list[int] = []
    by_score: bool = False
    plain: bool = False
    safety: str = ""
    filters: dict[str, Any] = {}
    stages: list[str] = []


class FeatureBlock(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Features as served for one request with N items, as raw little-endian arrays.

    ``user_keys`` int64 (U,) and ``item_keys`` int64 (N, I), padded with 0; ``history`` int64 (T, H) with
    ``outcomes`` float32 (T, O), newest first; ``dense`` float32 (N, F). The feature set defines U, I, H, O
    and F (recsys/features/feature_set.py).
    """

    feature_set: str
    user_keys: bytes = b""
    item_keys: bytes = b""
    history: bytes = b""
    outcomes: bytes = b""
    dense: bytes = b""
    backfilled: bool = False


class Choice(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The candidates that an engagement with an item of a list chose from, where they aren't the list itself.

    ``standing`` float32 (N,): the number of candidates that each item of the list stands for, 0 for one that
    the sources didn't have. ``others`` float32 (K, F): the dense features of further candidates, ``each`` of
    which stands for so many.
    """

    standing: bytes
    others: bytes = b""
    each: float = 1.0


class Item(msgspec.Struct, tag="item", kw_only=True):
    """An item was published, changed, or removed (``removed``)."""

    time_ms: int
    item_id: Id
    fields: dict[str, Any] = {}
    removed: bool = False
    event_id: str | None = None
    v: int = 1


class User(msgspec.Struct, tag="user", kw_only=True):
    """A user's profile, or a request to be forgotten (``removed``)."""

    time_ms: int
    user_id: Id
    fields: dict[str, Any] = {}
    removed: bool = False
    event_id: str | None = None
    v: int = 1


class Impression(msgspec.Struct, tag="impression", kw_only=True, gc=False):
    """One request's list as served, with its features, stamp and propensities.

    ``predicted``: the ranker's probabilities, little-endian float32 (N, L): each label, then the fraction of
    watch time; empty without a ranker. If a candidate got no finite number (``degraded`` has "rank"), items
    were ranked by popularity instead. For an interleaved list (experiments/statistics/interleaving.py):
    ``teams`` is the arm that picked the item at each rank, "" if nobody is credited; ``shares`` is P(the
    second arm picked it | the list) by rank, 0 if nobody is credited.

    ``shown``: whether all items were on screen, known when the list is written: of a data set that says so,
    or of an app that renders each list that it asks for with a key. ``source``: as of an engagement, of who
    asked for a list that is shown. ``choice``: unset, an engagement chose from what was shown of the list.
    """

    time_ms: int
    request_id: str
    user_id: Id
    items: list[ServedItem]
    context: dict[str, Any] = {}
    surface: str = "feed"
    stamp: Stamp | None = None
    features: FeatureBlock | None = None
    predicted: bytes = b""
    degraded: list[str] = []
    inputs: RequestInputs | None = msgspec.field(default=None, name="asked")
    teams: list[str] = []
    shares: list[float] = []
    shown: bool | msgspec.UnsetType = msgspec.UNSET
    source: int | msgspec.UnsetType = msgspec.UNSET
    choice: Choice | msgspec.UnsetType = msgspec.UNSET
    event_id: str | None = None
    v: int = 1


class Engagement(msgspec.Struct, tag="engagement", kw_only=True, gc=False):
    """A viewer's engagement with one served item. A ``view`` is sent when the item leaves the screen.

    ``request_id`` is empty if a client of another recommender's API doesn't know it: the joiner then looks
    for the impression (training/joining/joiner.py).

    ``proof`` is what the server knew of its sender: unset, the engagement is attributed to its impression;
    ``USER_PROVEN``, only its user is known, so only the viewer's own wishes count; ``UNPROVEN``, nothing
    counts; ``AGAIN``, a further view of an item in one list, where the first one counts. ``source``: 32-bit
    hash of the API key or network it came from; unset in data sets and old logs. ``token``: impression
    token of the answer, as clients send it; never on the log. ``value``: such as an amount, whose meaning
    and name the app declares for the kind. ``choice``: id of the list of candidates that a click also chose
    from, beside the list that it was served in (serving/click_lists.py). ``narrowed``: the viewer's side left
    little to choose from in its list, so it counts only for an established account. Both are written by the
    server only.
    """

    time_ms: int
    request_id: str
    user_id: Id
    item_id: Id
    kind: str
    watch_ms: int | None = None
    surface: str = "feed"
    event_id: str | None = None
    v: int = 1
    proof: int | msgspec.UnsetType = msgspec.UNSET
    source: int | msgspec.UnsetType = msgspec.UNSET
    token: str | msgspec.UnsetType = msgspec.UNSET
    value: float | msgspec.UnsetType = msgspec.UNSET
    choice: str | msgspec.UnsetType = msgspec.UNSET
    narrowed: bool | msgspec.UnsetType = msgspec.UNSET

    @property
    def attributed(self) -> bool:
        """Whether it may be learned from and counted."""
        return self.proof is msgspec.UNSET


class Verdict(msgspec.Struct, tag="verdict", kw_only=True):
    """A user's events from here on are quarantined, or count again. Written by the server only."""

    time_ms: int
    user_id: Id
    quarantined: bool
    why: str = ""


class Withdrawal(msgspec.Struct, tag="withdrawal", kw_only=True):
    """Takes back what a user's events before this one, from ``from_ms`` on, did to item counters and examples
    (recsys/events/withdrawal.py). Written by the server only. ``requests``: items by request, none for the
    whole list; under "" the items of engagements that name no request. Empty: all events of the user."""

    time_ms: int
    user_id: Id
    from_ms: int
    requests: dict[str, list[str]] = {}


class Preference(msgspec.Struct, tag="preference", kw_only=True):
    """A viewer's wish about all items with a value in a field: ``block``, ``mute``, ``less``, or ``none`` to
    take it back. ``field`` "item_id" means one item."""

    time_ms: int
    user_id: Id
    field: str
    value: Id
    wish: str
    event_id: str | None = None
    v: int = 1


class Tick(msgspec.Struct, tag="tick", kw_only=True, gc=False):
    """Moves event time on an idle partition, so that windows close."""

    time_ms: int


Event = Item | User | Impression | Engagement | Verdict | Withdrawal | Preference | Tick
# Events that clients may send; the server writes impressions, verdicts and withdrawals.
ClientEvent = Item | User | Engagement | Preference

TYPES: Final = ("item", "user", "impression", "engagement", "verdict", "preference", "tick")
WISHES: Final = ("block", "mute", "less", "none")
UNPROVEN: Final = 0
USER_PROVEN: Final = 1
AGAIN: Final = 2
CONTROL_CHARACTER: Final = re.compile(r"[\x00-\x1f\x7f]")
_IDS: Final = ("item_id", "user_id", "request_id", "event_id")
_to_wire = msgspec.msgpack.Encoder()
_from_wire: msgspec.msgpack.Decoder[Event] = msgspec.msgpack.Decoder(Event)


def encode(event: Event) -> bytes:
    """The event in MessagePack, as stored on the log if it isn't compressed."""
    return _to_wire.encode(event)


def decode(value: bytes) -> Event:
    """Reads a record of the log; raises Rejected for an invalid one (it goes to ``dead_letters``)."""
    try:
        return _from_wire.decode(plain(value))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Rejected("record", value[:40], f"an event in MessagePack ({error})") from error


def event_id_of(event: Event) -> str:
    """The client's event id, or else a digest of the event, whoever sent it."""
    if event_id := getattr(event, "event_id", None):
        return str(event_id)
    if isinstance(event, Engagement):
        event = with_proof(event, msgspec.UNSET, msgspec.UNSET)
    return digest_of(_to_wire.encode(event))


def with_proof(
    event: Engagement, proof: int | msgspec.UnsetType, source: int | msgspec.UnsetType, narrowed: bool = False
) -> Engagement:
    """The engagement as stored: with what its sender proved, and without its token and a choice."""
    unset = {"token": msgspec.UNSET, "choice": msgspec.UNSET}
    narrow = True if narrowed else msgspec.UNSET
    return msgspec.structs.replace(event, proof=proof, source=source, narrowed=narrow, **unset)


def is_folded(event: Event) -> bool:
    """Whether folds read an event: neither a tick, nor an engagement that counts for nobody."""
    if isinstance(event, Engagement):
        return event.attributed or event.proof == USER_PROVEN
    return not isinstance(event, Tick)


def dedupe_key(event: Event) -> str:
    """The key by which repeats are recognised: event id and user, since users may share event ids."""
    user_id = getattr(event, "user_id", None)
    return event_id_of(event) if user_id is None else dedupe_prefix(user_id) + event_id_of(event)


def dedupe_prefix(user_id: Id) -> str:
    """Prefix of the keys of a user's events."""
    return f"{user_id}\x1f"


def parse(
    raw: object, *, now_ms: int | None = None, oldest_ms: int | None = None, unattributed: bool = False,
    kinds: Sequence[str] = ENGAGEMENT_KINDS,
) -> Event:  # fmt: skip
    """Reads one external event: a decoded JSON object.

    With ``now_ms`` it refuses events more than five seconds in the future, with ``oldest_ms`` earlier ones;
    for historical data sets neither is given. ``unattributed`` allows an engagement's ``request_id`` to be
    empty. ``kinds``: of engagement. Raises Rejected, naming the field, the value and the expectation.
    """
    if not isinstance(raw, dict):
        raise Rejected("event", raw, "a JSON object with a 'type'")
    check_values(raw)
    kind = raw.get("type", MISSING)
    if kind not in TYPES:
        raise Rejected("type", kind, f"one of {', '.join(TYPES)}")
    try:
        event: Event = msgspec.convert(raw, Event, strict=True)
    except msgspec.ValidationError as error:
        raise explain(raw, error) from error
    _check_meaning(event, unattributed, kinds)
    if now_ms is not None and event.time_ms > now_ms + MAX_FUTURE_MS:
        latest = f"at most {now_ms + MAX_FUTURE_MS}, {MAX_FUTURE_MS // 1000} s after now: set the clock"
        raise Rejected("time_ms", event.time_ms, latest)
    if oldest_ms is not None and event.time_ms < oldest_ms:
        oldest = f"at least {oldest_ms}: older events are not taken"
        raise Rejected("time_ms", event.time_ms, oldest)
    return event


def _check_meaning(event: Event, unattributed: bool, kinds: Sequence[str]) -> None:
    if not 0 <= event.time_ms <= MAX_TIME_MS:
        raise Rejected("time_ms", event.time_ms, "milliseconds since 1970, up to the year 9999")
    for name in _IDS:
        if not (
            unattributed and name == "request_id" and isinstance(event, Engagement) and event.request_id == ""
        ):
            _check_id(name, getattr(event, name, None))
    if isinstance(event, Engagement):
        if event.kind not in kinds:
            raise Rejected("kind", event.kind, f"one of {', '.join(kinds)}")
        _check_id("surface", event.surface or "feed")
        if event.watch_ms is not None and event.watch_ms < 0:
            raise Rejected("watch_ms", event.watch_ms, "milliseconds, not negative")
        if event.watch_ms is not None and event.watch_ms > MAX_WATCH_MS:
            raise Rejected("watch_ms", event.watch_ms, f"at most {MAX_WATCH_MS}, a year")
    elif isinstance(event, Preference):
        if event.wish not in WISHES:
            raise Rejected("wish", event.wish, f"one of {', '.join(WISHES)}")
        if not 0 < len(event.field) <= MAX_ID_LENGTH:
            raise Rejected("field", event.field, "an item's field, or item_id")
        _check_id("value", event.value)
    elif isinstance(event, Impression):
        for i, served in enumerate(event.items):
            _check_id(f"items[{i}].item_id", served.item_id)
            if not 0 < served.propensity <= 1:
                name = f"items[{i}].propensity"
                raise Rejected(name, served.propensity, "a probability above 0, at most 1")


def _check_id(name: str, value: Id | None) -> None:
    if not isinstance(value, str):
        return
    if not 0 < len(value) <= MAX_ID_LENGTH:
        raise Rejected(name, value, f"an id of 1 to {MAX_ID_LENGTH} characters")
    if CONTROL_CHARACTER.search(value):
        raise Rejected(name, value, "an id without control characters, such as newlines")
