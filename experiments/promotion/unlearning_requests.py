"""Requests to unlearn users, or to rewind: a fold over their records.

asked ──► assigned (an epoch) ──► replaying ──► replayed ──► done: its epoch is live, what it replaced removed
              └──────────────────────┴──► refused           (assigned again if another epoch becomes live)
"""

from dataclasses import dataclass, field
from typing import Final

import msgspec

from recsys.events.control_records import Unlearning

ASKED, ASSIGNED, REPLAYING, REPLAYED = "asked", "assigned", "replaying", "replayed"
DONE, REFUSED = "done", "refused"
_OVER: Final = (DONE, REFUSED)


@dataclass
class UnlearningRequests:
    """All requests. ``by_id``: the newest record of each, with the users that its first one named."""

    by_id: dict[str, Unlearning] = field(default_factory=dict)

    def fold(self, record: Unlearning) -> None:
        """Adds the next state of a request."""
        before = self.by_id.get(record.id, record)
        users = record.users or before.users
        self.by_id[record.id] = msgspec.structs.replace(record, users=users)

    @property
    def pending(self) -> Unlearning | None:
        """The oldest request that isn't over: one at a time."""
        return next((request for request in self.by_id.values() if request.state not in _OVER), None)

    @property
    def pending_users(self) -> set[str]:
        """Users in requests that aren't over."""
        users = [request.users for request in self.by_id.values() if request.state not in _OVER]
        return {user for named in users for user in named}

    @property
    def done(self) -> list[Unlearning]:
        """Requests that are done, with their users as far as they are named."""
        return [request for request in self.by_id.values() if request.state == DONE]

    @property
    def epochs(self) -> set[int]:
        """Epochs assigned to requests."""
        return {request.epoch for request in self.by_id.values()}
