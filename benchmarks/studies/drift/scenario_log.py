"""The log of a scenario as a data set: randomly drawn lists, so that no arm chooses its own test rows."""

from dataclasses import dataclass

from benchmarks.studies.drift.world_scenarios import SCENARIOS, ScenarioWorld
from benchmarks.studies.quality.simulated_world_log import WorldLog
from examples.short_video.world import World
from recsys.events.event_types import Item
from recsys.events.hashing import Id, uniform

DAYS = 5  # of a scenario
_HOUR_MS = 3_600_000
_PUBLISHED = 96  # items a day
_WITH_AUTHOR = 0.5  # of the lists include the author who is shown everywhere
_READY = 6 / 24  # of the day, when a nightly job is ready


@dataclass
class ScenarioLog(WorldLog):
    """``hours`` of a scenario of five days: fewer than 120 make its days shorter."""

    hours: float = 24.0 * DAYS
    users: int = 100
    items: int = 640
    requests_per_s: float = 0.01
    story: str = "meaning"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.story not in SCENARIOS:
            raise ValueError(f"story is {self.story!r}, expected one of {', '.join(SCENARIOS)}")
        self.name = self.story
        self._world = self._make_world()

    def world(self) -> ScenarioWorld:
        """The world of the scenario."""
        return self._world

    def _make_world(self) -> ScenarioWorld:
        day_s = self.hours * 3_600 / DAYS
        return SCENARIOS[self.story](
            self.seed,
            self.users,
            self.items,
            day_ms=round(day_s * 1000),
            publish_every_s=day_s / _PUBLISHED,
            requests_per_s=self.requests_per_s,
        )

    def nights(self) -> list[tuple[int, int]]:
        """Begin of each nightly job, which sees all days so far, and the time at which its result is
        ready."""
        start_ms, day_ms = self._world.start_ms, self._world.day_ms
        return [
            (start_ms + day * day_ms, start_ms + round((day + _READY) * day_ms))
            for day in range(1, DAYS)
        ]

    def _shown(
        self, world: World, catalogue: list[Item], request_id: str, ids: list[Id], now_ms: int
    ) -> list[Id]:
        """In a drawn half of the lists, an item of an author who is shown everywhere takes one rank."""
        assert isinstance(world, ScenarioWorld)
        author = world.shown_too(now_ms)
        if author is None or uniform(self.seed, "with", request_id) >= _WITH_AUTHOR:
            return ids
        items_of_author = [item.item_id for item in catalogue if item.fields["author"] == author]
        if not items_of_author:
            return ids
        item_id = items_of_author[
            int(uniform(self.seed, "which", request_id) * len(items_of_author))
        ]
        place = int(uniform(self.seed, "place", request_id) * len(ids))
        return list(dict.fromkeys([*ids[:place], item_id, *ids[place + 1 :]]))
