"""The API's bodies, checked strictly at the edge, with the examples that stand in /docs."""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from serving.http.strict_json import storable

Text = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Number = Annotated[int, Field(ge=-(2**63), lt=2**63)]
IdIn = Text | Number
Fields = Annotated[dict[str, Any], AfterValidator(storable)]

_ENGAGEMENT: Any = {
    "type": "engagement",
    "time_ms": 1790000000000,
    "request_id": "5b0c6e6f2f1e4b0f9d6c",
    "user_id": "u42",
    "item_id": "v7",
    "kind": "view",
    "watch_ms": 8200,
    "event_id": "e-1",
}


class _In(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class RecommendIn(_In):
    """One request for items."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"user_id": "u42", "n": 10, "surface": "feed", "exclude_ids": ["v1"]},
                {"user_id": "u42", "n": 3, "candidate_ids": ["v1", "v2", "v3"], "explain": True},
            ]
        }
    )

    user_id: IdIn
    n: int = Field(
        10, ge=1, le=100, description="How many items; fewer come where there are no more."
    )
    surface: Text = Field("feed", description="Where the items are shown.")
    context: Fields = Field(
        default_factory=dict, max_length=50, description="What else is known of the request."
    )
    exclude_ids: list[IdIn] = Field(
        default_factory=list, max_length=1000, description="Items not to return."
    )
    candidate_ids: list[IdIn] | None = Field(
        None, max_length=1000, description="Rank just these. Without: all items are candidates."
    )
    explain: bool = Field(False, description="Adds predictions and reasons to the items.")


class EventsIn(_In):
    """Engagements, each checked on its own: one that is wrong doesn't keep back the others."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"events": [_ENGAGEMENT]}]})

    events: list[Any] = Field(min_length=1, max_length=500)


class ItemIn(_In):
    """An item to publish or change. A change replaces all its fields."""

    item_id: IdIn
    fields: Fields = Field(default_factory=dict)
    time_ms: int | None = Field(None, ge=0, description="Now, if left out.")


class ItemsIn(_In):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "items": [
                        {
                            "item_id": "v7",
                            "fields": {"author": "a3", "tags": ["cats"], "duration_ms": 12000},
                        }
                    ]
                }
            ]
        }
    )

    items: list[ItemIn] = Field(min_length=1, max_length=1000)


class UserIn(_In):
    """A user's profile: it replaces what was there."""

    user_id: IdIn
    fields: Fields = Field(default_factory=dict)
    time_ms: int | None = Field(None, ge=0, description="Now, if left out.")


class UsersIn(_In):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"users": [{"user_id": "u42", "fields": {"country": "NZ"}}]}]
        }
    )

    users: list[UserIn] = Field(min_length=1, max_length=1000)


# --- answers: for /docs; they are encoded without pydantic ---


class StampOut(BaseModel):
    """What an answer was made from."""

    line: str
    epoch: int
    step: int
    catalogue_offset: int
    item_state_offset: int
    session_offset: int
    policy: str
    arms: dict[str, str]


class RecommendedItem(BaseModel):
    """One item of the list. ``propensity``: the probability of this item at this rank, given those above."""

    item_id: str | int
    rank: int
    score: float | None
    propensity: float
    sources: list[str]
    fields: dict[str, Any]
    predictions: dict[str, float] | None = None
    reasons: list[dict[str, Any]] | None = None


class RecommendOut(BaseModel):
    """The list. Send ``request_id`` with what the viewer does. ``degraded``: stages that were skipped."""

    request_id: str
    items: list[RecommendedItem]
    stamp: StampOut
    took_ms: float
    degraded: list[str]


class ErrorOut(BaseModel):
    """What is wrong: which field, what was there, and what was expected."""

    field: str
    value: str
    expected: str


class ResultOut(BaseModel):
    index: int
    status: str = Field(description="accepted, duplicate or rejected")
    error: ErrorOut | None = None


class EventsOut(BaseModel):
    """What is accepted is committed to the log."""

    accepted: int
    duplicates: int
    rejected: int
    results: list[ResultOut]


class ProblemOut(BaseModel):
    """Why a request was refused."""

    error: str
    details: list[ErrorOut] = Field(default_factory=list)


class TopicOut(BaseModel):
    tag: str
    weight: float


class RecentOut(BaseModel):
    item_id: str | int
    time_ms: int
    watch_ms: int
    did: list[str]


class SessionOut(BaseModel):
    """What is known of a user right now."""

    user_id: str | int
    events: int
    offset: int
    last_ms: int
    topics: list[TopicOut]
    recent: list[RecentOut]


class VersionOut(BaseModel):
    line: str
    epoch: int
    step: int


class StatusOut(BaseModel):
    """How fresh this replica is. ``age_ms``: how long ago the newest example of the newest step closed."""

    version: VersionOut
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
    gaps: int
    impressions_dropped: int
