"""Attackers in the simulated world: accounts that push an item, or sink one, with real lists and tokens.

Like the world, an attack is a pure function of its seed: who asks when, and what is done with a list.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import merge
from typing import Final

import msgspec

from examples.short_video.world import AFTER, Request, World
from recsys.events.event_types import Engagement
from recsys.events.hashing import Id, key_of, uniform

FARM, DRIP, DISLIKES, HIJACK = "farm", "drip", "dislikes", "hijack"
STYLES: Final = (FARM, DRIP, DISLIKES, HIJACK)
_HOUR_MS: Final = 3_600_000
_PEOPLE: Final = 3  # of one network, on average
_EACH_MS: Final = 700  # between the engagements of a farm


@dataclass(frozen=True)
class Attack:
    """``share`` of the users as accounts, from ``from_ms`` on.

    ``farm`` asks ``lists`` times an hour, likes the targets in every way, ``repeats`` times over, and skips
    all else. ``drip`` watches like a person, as often as one, but likes the targets once. ``dislikes`` hides
    the targets as a farm likes them. ``hijack`` is a farm on accounts of people, who go on beside it.
    """

    style: str
    targets: tuple[str, ...]
    share: float = 0.01
    from_ms: int = 0
    lists: float = 20.0
    repeats: int = 10

    def __post_init__(self) -> None:
        if self.style not in STYLES:
            raise ValueError(f"style is {self.style!r}, expected one of {', '.join(STYLES)}")


class AttackedWorld(World):
    """A world with an attack. Requests and reactions of honest people are those of the world without it."""

    attack: Attack | None = None

    def attacked(self, attack: Attack) -> "AttackedWorld":
        """Begins an attack; returns the world."""
        self.attack = attack
        return self

    @property
    def accounts(self) -> list[str]:
        """The attackers' accounts: new ones, or people's."""
        if self.attack is None:
            return []
        number = max(2, round(self.attack.share * self.num_users))
        if self.attack.style != HIJACK:
            return [f"a{index}" for index in range(number)]
        people = range(self.num_users)
        # Somewhat active people: the squared draw of visits prefers low numbers.
        return [f"u{index}" for index in sorted(people, key=self._hijack_order)[:number]]

    def source_of(self, user_id: Id, attacks: bool = False) -> int:
        """The network of a user: people share few, attackers two."""
        if attacks:
            return self._pick(2, "farm", user_id) + 1
        networks = 1 + self.num_users // _PEOPLE
        return key_of("network", self._pick(networks, "network", user_id)) & 0xFFFFFFFF

    def attack_requests(self, from_ms: int, until_ms: int) -> Iterator[Request]:
        """Requests of the accounts in [from_ms, until_ms), in order."""
        if self.attack is None:
            return
        attack = self.attack
        hourly = 3600 * self.requests_per_s / self.num_users if attack.style == DRIP else attack.lists
        start_ms, step_ms = max(from_ms, attack.from_ms), round(_HOUR_MS / hourly)
        times = []
        for account in self.accounts:
            phase_ms = self._pick(step_ms, "phase", account)
            for number in range((start_ms - phase_ms) // step_ms - 1, until_ms // step_ms + 1):
                late_ms = self._pick(step_ms // 2 + 1, "late", account, number)
                time_ms = number * step_ms + phase_ms + late_ms
                if start_ms <= time_ms < until_ms:
                    times.append(Request(time_ms, account))
        yield from sorted(times, key=lambda request: request.time_ms)

    def all_requests(self, from_ms: int, until_ms: int) -> Iterator[tuple[Request, bool]]:
        """Everybody's requests in order, and whether an attacker makes it."""
        honest = ((request, False) for request in self.next_requests(from_ms, until_ms))
        attackers = ((request, True) for request in self.attack_requests(from_ms, until_ms))
        return merge(honest, attackers, key=lambda pair: pair[0].time_ms)

    def attack_list(
        self, user_id: Id, item_ids: Sequence[Id], request_id: str, time_ms: int
    ) -> list[Engagement]:
        """The attacker's engagements with a list, in time order."""
        attack = self.attack
        assert attack is not None
        if attack.style == DRIP:
            honest = self.react(user_id, item_ids, request_id, time_ms)
            done = [event for event in honest if str(event.item_id) not in attack.targets]
        else:
            done = []
        now_ms = time_ms
        for rank, item_id in enumerate(item_ids):
            is_target = str(item_id) in attack.targets
            if attack.style == DRIP and not is_target:
                continue
            kinds = ["skip"]
            if is_target:
                kinds = ["hide", "skip"] if attack.style == DISLIKES else ["long_view", *AFTER]
            repeats = attack.repeats if is_target and attack.style != DRIP else 1
            duration_ms = round(self.traits(item_id).duration_ms)
            watch_ms = duration_ms if is_target and attack.style != DISLIKES else 400
            names = [*(f"{kind}.{n}" for n in range(repeats) for kind in kinds), "view.0"]
            for name in names:
                now_ms += _EACH_MS if name != "view.0" else watch_ms
                kind = name.split(".")[0]
                done.append(
                    Engagement(
                        time_ms=now_ms, request_id=request_id, user_id=user_id, item_id=item_id,
                        kind=kind, watch_ms=watch_ms if kind in ("view", "long_view") else None,
                        event_id=f"{request_id}.{rank}.{name}",
                    )
                )  # fmt: skip
        return sorted(done, key=lambda event: event.time_ms)

    def engagements(
        self, request: Request, attacks: bool, item_ids: Sequence[Id], request_id: str
    ) -> list[Engagement]:
        """The engagements that follow a list, with their source."""
        react = self.attack_list if attacks else self.react
        source = self.source_of(request.user_id, attacks)
        events = react(request.user_id, item_ids, request_id, request.time_ms)
        return [msgspec.structs.replace(event, source=source) for event in events]

    def _hijack_order(self, index: int) -> float:
        return uniform(self.seed, "hijacked", index) + index / self.num_users
