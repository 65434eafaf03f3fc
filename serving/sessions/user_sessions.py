"""Reads users' sessions for requests."""

import msgspec

from recsys.events.hashing import Id
from recsys.features.feature_set import FeatureSet
from recsys.features.session import Session
from serving.problem import Unavailable
from serving.sessions.session_store import SessionReader, StoreUnavailable
from serving.sessions.session_timeout import MAX_WAIT_S, SLICE_S, TimedSessionReader


class UserSessions:
    """Sessions of one feature set from a store that may not answer. ``misses``: requests without theirs."""

    def __init__(self, store: SessionReader, features: FeatureSet, seen: int) -> None:
        """``seen``: as in ``Session``."""
        self.store, self._features, self._seen = TimedSessionReader(store), features, seen
        self.misses = 0

    async def of(self, user_id: Id) -> Session:
        """Session of a user. Raises Unavailable without a store."""
        session, read = await self.read(user_id, MAX_WAIT_S)
        if not read:
            raise Unavailable("the session store doesn't answer")
        return session

    async def read(self, user_id: Id, slice_s: float = SLICE_S) -> tuple[Session, bool]:
        """Session of a user, and whether the store was read; a new user's session if it wasn't."""
        try:
            blob = await self.store.get(user_id, slice_s)
            if blob is not None:
                return Session.unpack(blob, self._features, self._seen), True
        except (StoreUnavailable, msgspec.MsgspecError, ValueError):
            self.misses += 1
            return Session(user_id, self._features, self._seen), False
        return Session(user_id, self._features, self._seen), True
