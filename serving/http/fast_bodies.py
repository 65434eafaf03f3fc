"""The bodies of the two routes that are asked most, for msgspec: it reads and checks them in one pass.

Each says the same as the model of its name in ``api_models``, which stands in /docs and words the refusals:
tests/serving/http/test_fast_bodies.py holds the two to each other field by field.
"""

from typing import Annotated, Any

import msgspec

from serving.http.strict_json import storable

Text = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
Number = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
IdIn = Text | Number
Ids = Annotated[list[IdIn], msgspec.Meta(max_length=1000)]


class RecommendIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One request for items."""

    user_id: IdIn
    n: Annotated[int, msgspec.Meta(ge=1, le=100)] = 10
    surface: Text = "feed"
    context: Annotated[dict[str, Any], msgspec.Meta(max_length=50)] = {}
    exclude_ids: Ids = []
    candidate_ids: Ids | None = None
    explain: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError, of which msgspec makes a ValidationError."""
        if self.context:
            storable(self.context)


class EventsIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Engagements, each checked on its own afterwards."""

    events: Annotated[list[Any], msgspec.Meta(min_length=1, max_length=500)]
