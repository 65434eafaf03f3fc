"""Follows ``control``: lines and their models, the policies of experiments, API keys."""

import logging
from dataclasses import dataclass, field
from typing import Final

import msgspec

from experiments.assignment.policy import Policies
from experiments.promotion.kinds.line_state import LineState
from experiments.promotion.lifecycle import Lifecycle
from experiments.statistics.revision import running
from recsys.config.policy_config import check_rules, check_weights
from recsys.config.system_config import Config
from recsys.config.yaml_with_lines import YamlError
from recsys.events.control_records import ApiKey, Control, Experiments, Live
from recsys.events.field_schema import CATEGORICAL, Schema
from recsys.events.records import CONTROL
from recsys.log.protocol import Log
from serving.access.keyring import Keyring
from serving.followers.follower import Follower
from serving.followers.line_reader import MAIN


@dataclass
class ControlChange:
    """``lines``: whether candidates or arms may have changed."""

    policies: Policies | None = None
    keys: list[ApiKey] = field(default_factory=list)
    lines: bool = False

    def __bool__(self) -> bool:
        return bool(self.policies or self.keys) or self.lines


class ControlFollower(Follower[ControlChange]):
    """``lifecycle`` and ``live`` are as of the newest record that was read, and belong to reading threads,
    also of other variants. All else is as of the newest change that was applied."""

    def __init__(self, log: Log, config: Config, schema: Schema) -> None:
        """Raises ValueError where the configuration names what the schema lacks."""
        super().__init__()
        self._log, self._config, self._schema = log, config, schema
        self.policies = Policies(config.policy, (), config.surfaces)
        for policy in self.policies.bases.values():
            check_weights(policy, schema.labels)
            check_rules(policy, schema.names("item", CATEGORICAL))
        self.keyring = Keyring(complete=False)
        self.canary: LineState | None = None  # the candidate that answers a share of users
        self.arms: frozenset[str] = frozenset()  # lines that answer arms of experiments
        self.lifecycle = Lifecycle()
        self.live: tuple[str, int | None] = (MAIN, None)  # epoch None: the newest
        self.offset = log.begin(CONTROL, 0)
        self._change = ControlChange()

    def read(self, limit: int) -> ControlChange:
        """Reads to the end, so that the first change has all keys."""
        change = self._change
        while records := self._log.read(CONTROL, 0, self.offset):
            revisions = list[Experiments]()
            for record in records:
                message = self.decoded(record.value, _control)
                if message is None:
                    continue
                change.lines |= self.lifecycle.fold(message)
                if isinstance(message, Live):
                    self.live = (message.line, message.epoch)
                elif isinstance(message, ApiKey):
                    change.keys.append(message)
                elif isinstance(message, Experiments):
                    revisions.append(message)
            change.policies = self._newest(revisions) or change.policies
            self.offset = records[-1].offset + 1
        return change

    def _newest(self, revisions: list[Experiments]) -> Policies | None:
        """Policies of the newest valid revision."""
        return next(filter(None, map(self._policies_of, reversed(revisions))), None)

    def _policies_of(self, message: Experiments) -> Policies | None:
        base = self._config.policy
        try:
            return Policies(base, running(message, base, self._schema.labels), self._config.surfaces)
        except (YamlError, ValueError) as error:
            self.unreadable += 1
            extra = {"revision": message.revision, "error": str(error)}
            logging.getLogger(__name__).error("experiments rejected", extra=extra)
            return None

    def apply(self, change: ControlChange) -> None:
        self.policies = change.policies or self.policies
        for key in change.keys:
            self.keyring.fold(key)
        self.keyring.complete = True
        if change.lines:
            self.canary, self.arms = self.lifecycle.canary, frozenset(self.lifecycle.arms)
        self._change = ControlChange()


_control: Final["msgspec.msgpack.Decoder[Control]"] = msgspec.msgpack.Decoder(Control)
