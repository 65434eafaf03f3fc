"""Decides what an engagement proves, once, before it goes to the log. Pure."""

from collections.abc import Callable, Iterable, Sequence
from typing import Final

import msgspec

from recsys.config.system_config import Config
from recsys.events.event_types import UNPROVEN, USER_PROVEN, Engagement, Rejected, with_proof
from recsys.events.hashing import Id
from serving.access.caller import Caller
from serving.access.impression_token import FORGED, MALFORMED, OLD, Shown, Signer

NO_TOKEN, OTHER_LIST, REPEATED = "no token", "other list", "repeated"
FAULTS: Final = (NO_TOKEN, FORGED, MALFORMED, OLD, OTHER_LIST, REPEATED)


class Proofs:
    """Mints tokens and judges engagements. ``secrets`` returns the signing secrets, newest first."""

    def __init__(self, config: Config, secrets: Callable[[], Sequence[str]]) -> None:
        self._secrets, join = secrets, config.join
        joined_s = join.window_s + join.horizon_s + 3600
        self._life_s = min(joined_s, 3600 * config.log.retention_hours)
        self._signing: Sequence[str] = ()
        self._signer = Signer((), self._life_s)

    @property
    def can_sign(self) -> bool:
        """Whether there is a secret."""
        return bool(self._secrets())

    def mint(
        self, request_id: str, user_id: Id, items: Iterable[Id], policy: str, now_ms: int,
        narrowed: bool = False,
    ) -> str:  # fmt: skip
        """Token of an answer; empty without a secret."""
        return self._current().mint(request_id, user_id, items, policy, now_ms, narrowed)

    def prove(self, event: Engagement, caller: Caller, now_ms: int) -> tuple[Engagement, str]:
        """The engagement as it goes to the log, no older than its list, and why it isn't attributed, if so.

        Raises Rejected for an event of another user than the token's.
        """
        if caller.user_id not in (None, str(event.user_id)):
            raise Rejected("user_id", event.user_id, "the user of the user token")
        fault, listed_ms, narrowed = "", 0, False
        if not caller.attributes:
            shown = self._shown(event, now_ms)
            if isinstance(shown, str):
                fault = shown
            else:
                listed_ms, narrowed = 1000 * shown.time_s, shown.narrowed
        if event.time_ms < listed_ms:  # by back-dating a new account would count as an old one
            event = msgspec.structs.replace(event, time_ms=listed_ms)
        return with_proof(event, proof_of(caller, fault), caller.source, narrowed), fault

    def _shown(self, event: Engagement, now_ms: int) -> Shown | str:
        """The list that an engagement proves, or why it isn't attributed."""
        if not event.token:
            return NO_TOKEN
        shown = self._current().verify(event.token, now_ms)
        if isinstance(shown, str):
            return shown
        return shown if shown.proves(event) else OTHER_LIST

    def _current(self) -> Signer:
        secrets = self._secrets()
        if secrets is not self._signing:
            self._signing, self._signer = secrets, Signer(secrets, self._life_s)
        return self._signer


def proof_of(caller: Caller, fault: str) -> int | msgspec.UnsetType:
    """Proof of an engagement with this fault."""
    if not fault:
        return msgspec.UNSET
    return UNPROVEN if caller.user_id is None else USER_PROVEN
