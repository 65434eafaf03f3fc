"""``recsys demo --check``: acts as a viewer of a running system, and measures the effects.

Uses the public API and the log alone. The viewer is here, testable against any ``Feed``; ``accounting`` reads
the log and the archive, ``check_figures`` judges the results.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from benchmarks.demo_check import check_figures as figures
from benchmarks.demo_check.check_figures import Figure
from recsys.client import ApiError, Receipt, Recommendations
from recsys.events.event_types import Engagement
from recsys.events.hashing import Id

LIST: Final = 10
LONG_LIST: Final = 20  # items over which a topic's share is measured
LIKES: Final = (1, 3, 10)  # liked items of a topic after which its share is measured
LIKED: Final = LIKES[-1]
MAX_SWIPES: Final = 150  # until that many items of the topic have been shown
TOPICS: Final = 5
NEW_VIEWERS: Final = 10  # their first items determine the common topics
RATIO_BAR: Final = 3.0
FIRST_BAR: Final = 1 / 3  # share of a topic after one like
TASTE_BAR: Final = 0.6  # after ten: a clear majority
RUN_BAR: Final = 4  # items of a topic one after the other
SESSION_BAR_MS: Final = 250.0
SERVED_BAR_MS: Final = 5_000.0
SAMPLES: Final = 120
_POLL_S: Final = 0.005
_LOST_S: Final = 5.0  # delay recorded for a view that isn't in its session by then
_PROBE_EVERY_S: Final = 0.05


class Feed(Protocol):
    """API calls of a viewer, as ``recsys.client.Client`` has them."""

    def recommend(self, user_id: Id, n: int) -> Recommendations: ...

    def send_events(self, events: Sequence[Engagement]) -> Receipt: ...

    def session(self, user_id: Id) -> dict[str, Any]: ...


@dataclass
class Clock:
    """Clocks and sleep, replaceable in tests."""

    now_s: Callable[[], float] = time.monotonic
    wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000
    sleep: Callable[[float], None] = time.sleep


@dataclass
class Counts:
    """Counts of the feed's answers."""

    accepted: int = 0
    refused: int = 0
    answers: int = 0
    degraded: int = 0

    @property
    def total(self) -> int:
        """Number of events that these calls put on the log."""
        return self.accepted + self.answers


class Viewer:
    """A user of the feed who counts its answers."""

    def __init__(self, feed: Feed, clock: Clock, counts: Counts) -> None:
        self.feed, self.clock, self.counts = feed, clock, counts

    def recommend(self, user_id: str, n: int) -> Recommendations:
        """Requests a list."""
        answer = self.feed.recommend(user_id, n)
        self.counts.answers += 1
        self.counts.degraded += bool(answer.degraded)
        return answer

    def engage(
        self, answer: Recommendations, user_id: str, item_id: Id, *happened: tuple[str, int | None]
    ) -> float:
        """Sends engagements with an item; returns the time of the acknowledgement."""
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

    def await_session(self, user_id: str, item_id: Id) -> float:
        """Polls the session until it has the item, 5 s at most; returns the time."""
        until_s = self.clock.now_s() + _LOST_S
        while True:
            recent = self._recent(user_id)
            now_s = self.clock.now_s()
            if now_s > until_s or any(str(entry["item_id"]) == str(item_id) for entry in recent[:3]):
                return now_s
            self.clock.sleep(_POLL_S)

    def _recent(self, user_id: str) -> list[dict[str, Any]]:
        try:
            recent: list[dict[str, Any]] = self.feed.session(user_id)["recent"]
            return recent
        except ApiError as error:
            if not error.passing:
                raise
            return []  # the store was late: retried


def tags_of(answer: Recommendations) -> list[list[str]]:
    """Tags of each item of a list."""
    fields = [item.fields.get("tags") or [] for item in answer.items]
    return [[str(tag) for tag in (tags if isinstance(tags, list) else [tags])] for tags in fields]


@dataclass(frozen=True)
class TopicResult:
    """A topic's share of a new viewer's items, before and after so many likes, and of another new viewer's.
    ``run``: most items of the topic one after the other."""

    tag: str
    before: float
    shares: dict[int, float]
    run: int
    others: float
    swipes: int
    steps: tuple[int, int]

    @property
    def ratio(self) -> float:
        return figures.ratio(self.before, self.shares[LIKED], LONG_LIST)


def choose_topics(viewer: Viewer) -> list[str]:
    """Chooses the topics to try."""
    seen: list[list[str]] = []
    for number in range(NEW_VIEWERS):
        seen += tags_of(viewer.recommend(f"check-looker-{number}", LONG_LIST))
    return figures.common_topics(seen, TOPICS)


def try_topic(viewer: Viewer, tag: str) -> TopicResult:
    """Simulates a new viewer who likes items with a tag and skips the others."""
    user_id = f"check-{tag}"
    first = viewer.recommend(user_id, LONG_LIST)
    lists: dict[int, Recommendations] = {}
    liked = swipes = 0
    while liked < LIKED and swipes < MAX_SWIPES:
        answer = viewer.recommend(user_id, LIST)
        if not answer.items:
            break
        for item, tags in zip(answer.items, tags_of(answer), strict=True):
            swipes += 1
            if tag in tags:
                liked += 1
                watch_ms = int(item.fields.get("duration_ms") or 10_000)
                viewer.engage(answer, user_id, item.item_id, ("like", None), ("view", watch_ms))
                if liked in LIKES:
                    viewer.await_session(user_id, item.item_id)
                    lists[liked] = viewer.recommend(user_id, LONG_LIST)
            else:
                viewer.engage(answer, user_id, item.item_id, ("skip", None), ("view", 600))
            if liked == LIKED:
                break
        viewer.await_session(user_id, item.item_id)
    after = lists.setdefault(LIKED, viewer.recommend(user_id, LONG_LIST))
    others = viewer.recommend(f"{user_id}-other", LONG_LIST)
    return TopicResult(
        tag,
        figures.share_of(tag, tags_of(first)),
        {likes: figures.share_of(tag, tags_of(answer)) for likes, answer in lists.items()},
        max(figures.longest_run(tag, tags_of(answer)) for answer in lists.values()),
        figures.share_of(tag, tags_of(others)),
        swipes,
        (_step(first), _step(after)),
    )


def topic_figures(results: Sequence[TopicResult]) -> dict[str, Figure]:
    """Judges the median over topics, or the topic that fits worst, and lists each topic."""
    by_topic = {
        f"topic_{topic.tag}": Figure(
            f"{topic.before:.0%}, after likes "
            + ", ".join(f"{likes}: {share:.0%}" for likes, share in topic.shares.items())
            + f", {topic.swipes} swipes, longest run {topic.run}, others {topic.others:.0%}, "
            f"steps {topic.steps[0]} → {topic.steps[1]}"
        )
        for topic in results
    }
    ratio = figures.median([topic.ratio for topic in results])
    own = figures.median([topic.shares[LIKED] for topic in results])
    first = max((topic.shares.get(1, 0.0) for topic in results), default=None)
    run = max((topic.run for topic in results), default=None)
    others = figures.median([topic.others for topic in results])
    return by_topic | {
        "topics": figures.at_least(len(results), TOPICS),
        "topic_ratio": figures.at_least(ratio, RATIO_BAR),
        "topic_share_after_1": figures.at_most(first, FIRST_BAR),
        f"topic_share_after_{LIKED}": figures.at_least(own, TASTE_BAR),
        "topic_longest_run": figures.at_most(run, RUN_BAR),
        # Another new viewer has the same model: the difference is the session's effect.
        "topic_share_of_others": Figure(others),
    }


@dataclass
class FreshnessSample:
    """Times of acknowledged views, delays to the session, and (time, step) of answers."""

    acknowledged: dict[tuple[str, str], float] = field(default_factory=dict)
    to_session_ms: list[float] = field(default_factory=list)
    answers: list[tuple[float, int]] = field(default_factory=list)


def sample(viewer: Viewer, sampled: FreshnessSample, samples: int = SAMPLES) -> None:
    """Watches items, and polls the session after each."""
    number = 0
    while len(sampled.to_session_ms) < samples:
        user_id = f"check-viewer-{number}"  # a new user per list, to reach all partitions
        number += 1
        answer = viewer.recommend(user_id, LIST)
        for item in answer.items[: samples - len(sampled.to_session_ms)]:
            at_s = viewer.engage(answer, user_id, item.item_id, ("view", 1_500))
            in_session_s = viewer.await_session(user_id, item.item_id)
            sampled.acknowledged[answer.request_id, str(item.item_id)] = at_s
            sampled.to_session_ms.append((in_session_s - at_s) * 1000)


class VersionProbe:
    """Context that requests one item repeatedly, in a thread, and records the answering versions."""

    def __init__(self, viewer: Viewer, sampled: FreshnessSample) -> None:
        self._viewer, self._sampled = viewer, sampled
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)

    def __enter__(self) -> "VersionProbe":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10.0)

    def _run(self) -> None:
        while not self._stop.wait(_PROBE_EVERY_S):
            try:
                answer = self._viewer.recommend("check-watcher", 1)
            except Exception:  # refused or late: the next request follows soon
                self._viewer.counts.refused += 1
                continue
            self._sampled.answers.append((self._viewer.clock.now_s(), _step(answer)))


def _step(answer: Recommendations) -> int:
    return answer.stamp.step if answer.stamp is not None else 0


def delay_figures(
    sampled: FreshnessSample, steps: Mapping[tuple[str, str], int], events_per_s: float, asked_per_s: float
) -> dict[str, Figure]:
    """Judges both freshness delays, and the background load during the measurement."""
    delays = figures.served_delays(sampled.acknowledged, steps, sampled.answers)
    session, served = sampled.to_session_ms, delays
    return {
        "samples": figures.at_least(len(session), 100),
        "click_to_session_p50_ms": Figure(figures.rounded(figures.percentile(session, 0.5), 1)),
        "click_to_session_p95_ms": figures.at_most(figures.percentile(session, 0.95), SESSION_BAR_MS),
        "click_to_served_p50_ms": Figure(figures.rounded(figures.percentile(served, 0.5), 1)),
        "click_to_served_p95_ms": figures.at_most(figures.percentile(served, 0.95), SERVED_BAR_MS),
        "background_events_per_s": figures.at_least(events_per_s, 0.8 * asked_per_s),
    }
