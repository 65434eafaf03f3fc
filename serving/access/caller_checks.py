"""Keys, quotas and proofs of the callers of one replica."""

import logging
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from recsys.config.system_config import Config
from recsys.events.hashing import Id
from serving.access.access_control import AccessControl
from serving.access.caller import Caller, Denied
from serving.access.key_files import DOOR_KEY, SOURCE_KEY, TOKEN_KEYS, SecretFile
from serving.access.keyring import Keyring
from serving.access.proofs import Proofs
from serving.access.quotas import Quotas


class CallerChecks:
    """Decides what callers may do now. ``folder``: of the secrets."""

    def __init__(self, config: Config, now_ms: Callable[[], int]) -> None:
        self._config, self._now_ms = config, now_ms
        self.folder = Path(config.state) / "run"
        self.quotas, self.proofs = Quotas(config), Proofs(config, SecretFile(self.folder / TOKEN_KEYS))

    def warn_without_secret(self) -> None:
        """Logs that engagements can't be proven, where there is no secret for tokens."""
        if not self.proofs.can_sign:
            message = "answers have no tokens: engagements can't be proven"
            logging.getLogger(__name__).warning(message, extra={"no": self.folder / TOKEN_KEYS})

    def control(
        self, keyring: Keyring, admin_key: Callable[[], str], scopes: Iterable[tuple[str, str]] = (),
        health: Collection[str] = (),
    ) -> AccessControl:  # fmt: skip
        """Control of the callers of the API. ``scopes``, ``health``: of routes that plug-ins add."""
        source_key, door_key = (SecretFile(self.folder / name) for name in (SOURCE_KEY, DOOR_KEY))
        return AccessControl(
            self._config, keyring, self.quotas, admin_key, source_key, door_key, self._now_ms, scopes, health
        )

    def check_list(self, caller: Caller, user_id: Id) -> None:
        """Raises Denied where the caller may not have a list of the user, or not now."""
        caller.check_user(user_id)
        if wait_s := self.quotas.list(caller, user_id, self._now_ms() / 1000):
            message = "the user asks for more lists than access.user_lists allows"
            raise Denied(429, "quota", message, wait_s)

    def check_preference(self, caller: Caller, user_id: Id) -> None:
        """Raises Denied where the caller may not set a preference of the user, or not now."""
        caller.check_user(user_id)
        if wait_s := self.quotas.event(caller, user_id, self._now_ms() / 1000):
            message = "the user sends more events than access.user_events allows"
            raise Denied(429, "quota", message, wait_s)
