"""Bodies of the API as pydantic models: strict validation, and the schemas and examples of /docs."""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    Json,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)

from experiments.assignment.policy import LENGTH
from recsys.config.policy_config import MAX_LIST_LENGTH
from serving.http.strict_json import MAX_EVENTS, small, storable

Text = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Number = Annotated[int, Field(ge=-(2**63), lt=2**63)]
IdIn = Text | Number
Line = Annotated[Text, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]*$")]
UserIdIn = Line | Number
Fields = Annotated[dict[str, Any], AfterValidator(storable)]
# Conditions by field: see serving/filters/conditions.py.
_CONDITION: Any = {"type": ["string", "number", "boolean", "array", "object"]}
_FILTERS = WithJsonSchema({"type": "object", "additionalProperties": _CONDITION})
Filters = Annotated[dict[Text, Any], Field(max_length=10), AfterValidator(small), _FILTERS]
_MAX_FIELDS = 50

_ENGAGEMENT: Any = {
    "type": "engagement", "time_ms": 1790000000000, "request_id": "5b0c6e6f2f1e4b0f9d6c", "user_id": "u42",
    "item_id": "v7", "kind": "view", "token": "AQEAAAB5...", "watch_ms": 8200, "event_id": "e-1",
}  # fmt: skip


_ITEM: Any = {"item_id": "v7", "fields": {"author": "a3", "tags": ["cats"], "duration_ms": 12000}}
_USER: Any = {"user_id": "u42", "fields": {"country": "NZ"}}
_PREFERENCE: Any = {"user_id": "u42", "field": "author", "value": "a3", "wish": "block"}
_REQUESTS: Any = (
    {"user_id": "u42", "n": 10, "surface": "feed", "exclude_ids": ["v1"]},
    {"user_id": "u42", "filters": {"tags": ["cats", "dogs"], "duration_ms": {"max": 60000}}},
    {"user_id": "u42", "n": 3, "candidate_ids": ["v1", "v2", "v3"], "explain": True},
)
_RANKING: Any = {"user_id": "u42", "candidate_ids": ["v1", "v2", "v3"], "surface": "search"}


def _with_examples(*examples: Any) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": list(examples)})


class _In(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _check_size(cls, value: Any) -> Any:
        """Refuses many unknown fields by one error: 90,000 errors would take 0.4 s."""
        if isinstance(value, dict) and len(value) > _MAX_FIELDS:
            raise ValueError(f"{len(value)} fields, expected at most {_MAX_FIELDS}")
        return value


class _ListIn(_In):
    user_id: UserIdIn
    surface: Line = Field("feed", description="Place where the items are shown.")
    context: Annotated[dict[str, Any], AfterValidator(small), AfterValidator(storable)] = Field(
        default_factory=dict, max_length=50, description="Further facts about the request."
    )
    exclude_ids: list[IdIn] = Field(default_factory=list, max_length=1000, description="Items to exclude.")
    filters: Filters = Field(
        default_factory=dict,
        description="Conditions on declared fields of items, all of which must hold: a value, a list of "
        "values, or a range with `min`, `max` or both.",
    )
    explain: bool = Field(False, description="Adds predictions and reasons to the items.")
    profiling: bool = Field(
        True, description="Whether the viewer's profile and history may be used for this list."
    )


class RecommendIn(_ListIn):
    """One request for items."""

    model_config = _with_examples(*_REQUESTS)

    n: int | None = Field(
        None,
        ge=1,
        le=MAX_LIST_LENGTH,
        description="Number of items; fewer if there are no more. Default: that of the surface, else 10.",
    )
    candidate_ids: list[IdIn] | None = Field(
        None, max_length=1000, description="Items to draw from; null: all items are candidates."
    )


class RankIn(_ListIn):
    """Items of the caller to rank for a user."""

    model_config = _with_examples(_RANKING)

    candidate_ids: list[IdIn] = Field(min_length=1, max_length=1000, description="Items to rank.")
    n: int = Field(
        MAX_LIST_LENGTH,
        ge=1,
        le=1000,
        description="Number of items, the best; above 100 only without `log` and `explain`.",
    )
    explore: bool = Field(False, description="Draws the order, with propensities, as a feed does.")
    log: bool = Field(True, description="Logs the list as an impression: the user will see it.")

    @model_validator(mode="after")
    def _check_n(self) -> Self:
        if self.n > MAX_LIST_LENGTH and (self.log or self.explain):
            raise ValueError(f"n is {self.n}, expected at most {MAX_LIST_LENGTH}, or log and explain false")
        return self


class ListQuery(BaseModel):
    """Parameters of a list that is the same for all viewers."""

    model_config = ConfigDict(extra="forbid")

    n: int = Field(LENGTH, ge=1, le=100, description="Number of items; fewer if there are no more.")
    filters: Annotated[Json[Filters], Field(description="As of recommend, as JSON.")] = {}


class EventsIn(_In):
    """Engagements, each checked on its own: a wrong one doesn't hold back the others."""

    model_config = _with_examples({"events": [_ENGAGEMENT]})

    events: list[Any] = Field(min_length=1, max_length=MAX_EVENTS)


class PreferenceIn(_In):
    """Wish of a viewer about items whose `field` is or contains `value`; `item_id` for one item."""

    user_id: IdIn
    field: Text = Field("item_id", description="A field of items, or item_id.")
    value: IdIn
    wish: Text = Field(description="block, mute, less or none")
    time_ms: int | None = Field(None, ge=0, description="Default: now.")


class PreferencesIn(_In):
    model_config = _with_examples({"preferences": [_PREFERENCE]})

    preferences: list[PreferenceIn] = Field(min_length=1, max_length=100)


class ItemIn(_In):
    """Item to publish or change. A change replaces all fields."""

    item_id: IdIn
    fields: Fields = Field(default_factory=dict)
    time_ms: int | None = Field(None, ge=0, description="Default: now.")


class ItemsIn(_In):
    model_config = _with_examples({"items": [_ITEM]})

    items: list[ItemIn] = Field(min_length=1, max_length=1000)


class UserIn(_In):
    """Profile of a user. It replaces the profile before."""

    user_id: IdIn
    fields: Fields = Field(default_factory=dict)
    time_ms: int | None = Field(None, ge=0, description="Default: now.")


class EraseIn(_In):
    """User to erase."""

    user_id: IdIn


class UsersIn(_In):
    model_config = _with_examples({"users": [_USER]})

    users: list[UserIn] = Field(min_length=1, max_length=1000)


# --- responses: schemas for /docs; msgspec encodes them ---


class VersionOut(BaseModel):
    line: str
    epoch: int
    step: int


class StampOut(VersionOut):
    """Versions that an answer was computed from."""

    catalogue_offset: int
    item_state_offset: int
    session_offset: int
    policy: str
    arms: dict[str, str]
    index: str


class RecommendedItem(BaseModel):
    """Item of the list. ``propensity``: probability of this item at this rank, given the items above."""

    item_id: str | int
    rank: int
    score: float | None
    propensity: float
    sources: list[str]
    fields: dict[str, Any]
    predictions: dict[str, float] | None = None
    reasons: list[dict[str, Any]] | None = None


class WarningOut(BaseModel):
    """A candidate that isn't in the list, although there was room for it."""

    item_id: str | int
    why: str = Field(
        description="unknown: never published, or removed. excluded, filtered: by the request. closed: "
        "by a wish of the viewer, a safety rule or a rule of the policy."
    )


class RecommendOut(BaseModel):
    """List of items. Send ``request_id`` and ``token`` with the viewer's engagements: without them nothing is
    learned. ``token`` is empty for a list of the caller's own candidates, unless the key may attribute.
    ``degraded``: skipped stages."""

    request_id: str
    token: str
    items: list[RecommendedItem]
    stamp: StampOut
    took_ms: float
    degraded: list[str]
    warnings: list[WarningOut]


class ItemListOut(BaseModel):
    """Items, best first; `score` is comparable within the list."""

    items: list[RecommendedItem]
    degraded: list[str] = Field(description="retrieval: items of a retrieval shard are missing.")


class ErrorOut(BaseModel):
    """Error in a field: its value, and the expected one."""

    field: str
    value: str
    expected: str


class ResultOut(BaseModel):
    index: int
    status: str = Field(description="accepted, duplicate or rejected")
    error: ErrorOut | None = None
    warning: ErrorOut | None = None


class EventsOut(BaseModel):
    """Result for each event. Accepted events are committed to the log."""

    accepted: int
    duplicates: int
    rejected: int
    unproven: int = Field(description="Accepted events that count for nothing: see `token`.")
    results: list[ResultOut]


class ProblemOut(BaseModel):
    """Reason for a refusal."""

    error: str
    details: list[ErrorOut] = Field(default_factory=list)


class TopicOut(BaseModel):
    tag: str
    weight: float


class RecentOut(BaseModel):
    """Seen item. ``learned``: this replica took its view and serves a model that has learned it."""

    item_id: str | int
    time_ms: int
    watch_ms: int
    did: list[str]
    learned: bool


class SessionOut(BaseModel):
    """Current session of a user."""

    user_id: str | int
    events: int
    offset: int
    last_ms: int
    topics: list[TopicOut]
    recent: list[RecentOut]


class KindOut(BaseModel):
    """A kind of engagement. ``label``: positive, negative, or "" if it isn't predicted. ``button``: whether a
    viewer reports it by a button, rather than by opening or watching an item."""

    kind: str
    label: str
    name: str
    button: bool


class AppOut(BaseModel):
    """``opens``: the kind to report of an item that is opened. ``fields``: for each thing that a page shows
    of an item, the fields that may hold it. ``categories``: the item fields of kind category or list.
    ``groups``: those whose values a viewer may block."""

    app: str
    layout: Literal["swipe", "list"]
    shown: Literal["view", "list", "clicks"]
    opens: str | None
    kinds: list[KindOut]
    fields: dict[str, list[str]]
    categories: list[str]
    groups: list[str]


class StatusOut(BaseModel):
    """Freshness of this replica. ``time_ms``: event time now. ``age_ms``: age of the newest example of the
    newest step. ``answers``: lists answered since the start; their times and shares are those of the last
    30 s, null without any."""

    version: VersionOut
    features: dict[str, str]
    canary: dict[str, Any] | None
    arms: dict[str, dict[str, Any]]
    time_ms: int
    age_ms: int | None
    items: int
    ready: bool
    events_per_s: float
    examples_per_s: float
    click_to_session_ms: float | None
    click_to_session_p95_ms: float | None
    click_to_served_ms: float | None
    click_to_served_p95_ms: float | None
    lag: dict[str, int]
    catching_up: dict[str, dict[str, float | None]]
    gaps: int
    impressions_dropped: int
    answers: int
    answer_p50_ms: float | None
    answer_p99_ms: float | None
    failed_share: float | None
    degraded_share: float | None
