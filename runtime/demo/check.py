"""``recsys demo --check``: acts as a viewer of a running system, and measures what it promises.

It knows the system by its public API and its log alone. The viewer's part is here, testable against any
``Feed``; what the log and the archive say is read by ``runtime.demo.accounting``; what is made of it all is in
``runtime.demo.check_figures``.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from recsys.client import ApiError, Receipt, Recommendations
from recsys.events.event_types import Engagement
from recsys.events.hashing import Id
from runtime.demo import check_figures as figures
from runtime.demo.check_figures import Figure

LIST: Final = 10
LOOK: Final = 20  # items of which the share of a topic is taken
LIKED: Final = 10  # swipes at a topic
MOST: Final = 150  # swipes in all until so many of the topic have come
TOPICS: Final = 5
LOOKERS: Final = 10  # new viewers whose first items say which topics are usual
RATIO_BAR: Final = 3.0
SESSION_BAR_MS: Final = 250.0
SERVED_BAR_MS: Final = 5_000.0
SAMPLES: Final = 120
_POLL_S: Final = 0.005
_LOST_S: Final = 5.0  # a view that isn't in its session by then counts as that late
_WATCH_EVERY_S: Final = 0.05


class Feed(Protocol):
    """What a viewer needs of a server: ``recsys.client.Client`` has it."""

    def recommend(self, user_id: Id, n: int) -> Recommendations: ...

    def send_events(self, events: Sequence[Engagement]) -> Receipt: ...

    def session(self, user_id: Id) -> dict[str, Any]: ...


@dataclass
class Clock:
    """Time, handed in by tests."""

    now_s: Callable[[], float] = time.monotonic
    wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000
    sleep: Callable[[float], None] = time.sleep


@dataclass
class Counts:
    """What the feed said while it was used."""

    accepted: int = 0
    refused: int = 0
    answers: int = 0
    degraded: int = 0

    @property
    def total(self) -> int:
        """Events that it brought about."""
        return self.accepted + self.answers


class Viewer:
    """Somebody who uses the feed, and counts what it says."""

    def __init__(self, feed: Feed, clock: Clock, counts: Counts) -> None:
        self.feed, self.clock, self.counts = feed, clock, counts

    def ask(self, user_id: str, n: int) -> Recommendations:
        answer = self.feed.recommend(user_id, n)
        self.counts.answers += 1
        self.counts.degraded += bool(answer.degraded)
        return answer

    def tell(self, answer: Recommendations, user_id: str, item_id: Id,
             *happened: tuple[str, int | None]) -> float:  # fmt: skip
        """Tells what was done with an item; returns when that was acknowledged."""
        now_ms = self.clock.wall_ms()
        events = [
            Engagement(
                time_ms=now_ms, request_id=answer.request_id, user_id=user_id, item_id=item_id,
                kind=kind, watch_ms=watch_ms, event_id=f"{answer.request_id}.{item_id}.{kind}",
            )
            for kind, watch_ms in happened
        ]  # fmt: skip
        receipt = self.feed.send_events(events)
        self.counts.accepted += receipt.accepted
        self.counts.refused += len(receipt.rejected)
        return self.clock.now_s()

    def until_known(self, user_id: str, item_id: Id) -> float:
        """Asks for the session until it has the item; returns when that was."""
        since_s = self.clock.now_s()
        while True:
            recent = self._recent(user_id)
            now_s = self.clock.now_s()
            if any(str(entry["item_id"]) == str(item_id) for entry in recent[:3]):
                return now_s
            if now_s - since_s > _LOST_S:
                return now_s
            self.clock.sleep(_POLL_S)

    def _recent(self, user_id: str) -> list[dict[str, Any]]:
        try:
            recent: list[dict[str, Any]] = self.feed.session(user_id)["recent"]
            return recent
        except ApiError as error:
            if not error.passing:
                raise
            return []  # the store was late: asked again


def tags_of(answer: Recommendations) -> list[list[str]]:
    """The tags of each item of a list."""
    found = [item.fields.get("tags") or [] for item in answer.items]
    return [[str(tag) for tag in (tags if isinstance(tags, list) else [tags])] for tags in found]


@dataclass(frozen=True)
class Swiped:
    """One topic's trial: its share of a new viewer's items before and after, and of others' meanwhile."""

    tag: str
    before: float
    after: float
    others: float
    swipes: int
    steps: tuple[int, int]

    @property
    def ratio(self) -> float:
        return figures.ratio(self.before, self.after, LOOK)


def usual(viewer: Viewer) -> list[str]:
    """The topics that are tried."""
    seen: list[list[str]] = []
    for number in range(LOOKERS):
        seen += tags_of(viewer.ask(f"check-looker-{number}", LOOK))
    return figures.usual_topics(seen, TOPICS)


def try_topic(viewer: Viewer, tag: str) -> Swiped:
    """A new viewer watches and likes what has a tag, and skips what hasn't."""
    user_id = f"check-{tag}"
    first = viewer.ask(user_id, LOOK)
    liked = swipes = 0
    while liked < LIKED and swipes < MOST:
        answer = viewer.ask(user_id, LIST)
        if not answer.items:
            break
        for item, tags in zip(answer.items, tags_of(answer), strict=True):
            swipes += 1
            if tag in tags:
                liked += 1
                watch_ms = int(item.fields.get("duration_ms") or 10_000)
                viewer.tell(answer, user_id, item.item_id, ("like", None), ("view", watch_ms))
            else:
                viewer.tell(answer, user_id, item.item_id, ("skip", None), ("view", 600))
            if liked == LIKED:
                break
        viewer.until_known(user_id, item.item_id)
    after = viewer.ask(user_id, LOOK)
    others = viewer.ask(f"{user_id}-other", LOOK)
    return Swiped(
        tag,
        figures.share_of(tag, tags_of(first)),
        figures.share_of(tag, tags_of(after)),
        figures.share_of(tag, tags_of(others)),
        swipes,
        (_step(first), _step(after)),
    )


def topic_figures(tried: Sequence[Swiped]) -> dict[str, Figure]:
    """The median over topics decides; each is told."""
    found = {
        f"topic_{one.tag}": Figure(
            f"{one.before:.0%} → {one.after:.0%} after {one.swipes} swipes, others {one.others:.0%}, "
            f"steps {one.steps[0]} → {one.steps[1]}"
        )
        for one in tried
    }
    ratio = figures.median([one.ratio for one in tried])
    own = figures.median([one.after for one in tried])
    others = figures.median([one.others for one in tried])
    return found | {
        "topics": figures.at_least(len(tried), TOPICS),
        "topic_ratio": figures.at_least(ratio, RATIO_BAR),
        "topic_share_after": Figure(own),
        # What a new viewer gets from the same model: the difference is the session's.
        "topic_share_of_others": Figure(others),
    }


@dataclass
class Sampled:
    """Views that were acknowledged, how long each took to the session, and answers with their steps."""

    acknowledged: dict[tuple[str, str], float] = field(default_factory=dict)
    to_session_ms: list[float] = field(default_factory=list)
    answers: list[tuple[float, int]] = field(default_factory=list)


def sample(viewer: Viewer, sampled: Sampled, samples: int = SAMPLES) -> None:
    """Watches items, and asks for the session after each until it knows."""
    number = 0
    while len(sampled.to_session_ms) < samples:
        user_id = f"check-viewer-{number}"  # a new one for each list: they fall into all partitions
        number += 1
        answer = viewer.ask(user_id, LIST)
        for item in answer.items[: samples - len(sampled.to_session_ms)]:
            at_s = viewer.tell(answer, user_id, item.item_id, ("view", 1_500))
            known_s = viewer.until_known(user_id, item.item_id)
            sampled.acknowledged[answer.request_id, str(item.item_id)] = at_s
            sampled.to_session_ms.append((known_s - at_s) * 1000)


class Watcher:
    """Asks for one item again and again, in a thread, and notes the versions that answer."""

    def __init__(self, viewer: Viewer, sampled: Sampled) -> None:
        self._viewer, self._sampled = viewer, sampled
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)

    def __enter__(self) -> "Watcher":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10.0)

    def _run(self) -> None:
        while not self._stop.wait(_WATCH_EVERY_S):
            try:
                answer = self._viewer.ask("check-watcher", 1)
            except Exception:  # refused or late: the next is soon; views wait on
                self._viewer.counts.refused += 1
                continue
            self._sampled.answers.append((self._viewer.clock.now_s(), _step(answer)))


def _step(answer: Recommendations) -> int:
    return answer.stamp.step if answer.stamp is not None else 0


def delay_figures(
    sampled: Sampled, steps: Mapping[tuple[str, str], int], events_per_s: float, asked_per_s: float
) -> dict[str, Figure]:
    """Both freshness figures, and the load under which they were taken."""
    delays = figures.served_delays(sampled.acknowledged, steps, sampled.answers)
    session, served = sampled.to_session_ms, delays
    return {
        "samples": figures.at_least(len(session), 100),
        "click_to_session_p50_ms": Figure(_short(figures.percentile(session, 0.5))),
        "click_to_session_p95_ms": figures.at_most(
            figures.percentile(session, 0.95), SESSION_BAR_MS
        ),
        "click_to_served_p50_ms": Figure(_short(figures.percentile(served, 0.5))),
        "click_to_served_p95_ms": figures.at_most(figures.percentile(served, 0.95), SERVED_BAR_MS),
        "background_events_per_s": figures.at_least(events_per_s, 0.8 * asked_per_s),
    }


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, 1)
