"""Replays the server over events in time order: fold, features, score, impression, then the engagements.

An impression is scored with the state of its own time: sessions and counters of what had happened, and the
model version that would have been serving. A data set brings its lists.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from experiments.assignment.policy import Policy
from parameter_server.publish.deltas import StepDelta
from recsys.config.system_config import Config, digest
from recsys.events.event_types import (
    UNPROVEN,
    Choice,
    Engagement,
    Event,
    Impression,
    Item,
    ServedItem,
    Stamp,
    User,
)
from recsys.events.hashing import Id
from recsys.events.records import CLICK_LIST
from recsys.features.feature_set import FeatureSet
from recsys.features.item_counters import ItemCounters
from recsys.features.request_features import RequestFeatures
from recsys.features.session import Session
from replay.constant_columns import ConstantColumns
from serving.answers.choices import is_looked_at
from serving.click_lists import ClickLists
from serving.pipeline import Pipeline
from serving.query import Query
from serving.replica.replica import Replica
from serving.request import Request
from serving.scorers.probabilities import probabilities

_EARLY = 2_000  # first lists, all of whose choices are looked at …
_SHARE = 1 / 32  # … and the share of later ones in the end
_FLUSH = 512  # impressions scored together at the most; the scores don't depend on it


class Loop(Protocol):
    """The parts behind the log; it learns when ``advance`` moves its clock."""

    def advance(self, now_ms: int) -> list[StepDelta]: ...
    def append(self, event: Event) -> None: ...


@dataclass(frozen=True)
class ScoredImpression:
    """One impression with the probabilities (N, L) of its items and the version of the model."""

    impression: Impression
    probabilities_NL: NDArray[np.float32]
    line: str
    epoch: int
    step: int


@dataclass
class Player:
    """One replica, all sessions, and the loop. ``on_scored`` gets every scored impression, in order.

    ``sync_every_ms``: model updates are held back to multiples of it (0: applied at each step).
    """

    features: FeatureSet
    config: Config
    loop: Loop
    sync_every_ms: int = 0
    on_scored: Callable[[ScoredImpression], None] = lambda scored: None
    replica: Replica = field(init=False)
    sessions: dict[str, Session] = field(init=False, default_factory=dict)
    now_ms: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.replica = Replica(self.features, self.config)
        self.pipeline = Pipeline(self.replica)
        self._click_lists = ClickLists(self.pipeline)
        self._lists = 0  # logged ones so far
        self.constant = ConstantColumns(self.features)
        self._policy = Policy(self.config.policy, digest(self.config.policy))
        self.item_counters = ItemCounters(self.features, self.config.bounds, covisits=self.config.covisits)
        self.replica.counters = self.item_counters.counters  # one process: nothing to send
        self._waiting: list[tuple[RequestFeatures, Impression]] = []
        self._held: list[StepDelta] = []
        self._moment: list[Event] = []  # clicks with their lists, not folded: a basket has one moment
        self._users: dict[str, User] = {}  # of those who have no session yet
        self.fold_before: Callable[[Session], None] = lambda session: None  # events not folded yet

    def session(self, user_id: Id) -> Session:
        """Session of a user, created when there is none."""
        session = self.sessions.get(str(user_id))
        if session is None:
            session = Session(user_id, self.features, self.config.sessions.seen)
            self.sessions[str(user_id)] = session
            if user := self._users.pop(str(user_id), None):
                session.fold_user(user)
            self.fold_before(session)
        return session

    def play(self, event: Event) -> None:
        """Takes the next event. Time never goes back."""
        if isinstance(event, Engagement) and event.proof == UNPROVEN:
            return
        self.advance(event.time_ms)
        if isinstance(event, Item):
            self.replica.apply_item(event, 0)
        elif isinstance(event, User):
            self._user(event)
        elif isinstance(event, Impression):
            self._impression(event)
        elif isinstance(event, Engagement):
            self._engagement(event)

    def publish(self, items: Sequence[Item]) -> None:
        """Takes items in a row, which takes a fraction of the time of one by one."""
        if items:
            self.advance(max(item.time_ms for item in items))
            self.replica.apply_items(items, 0)

    def as_lists(self, event: Event) -> tuple[Event, ...]:
        """The event; in a log of clicks only, before it the list that it chooses from. A further label
        belongs to the list of the item's click."""
        if (
            self.features.schema.shown_by != "click"
            or not isinstance(event, Engagement)
            or event.kind not in self.features.schema.labels
            or event.choice  # a running system made its list
            or event.request_id.startswith(CLICK_LIST)
        ):
            return (event,)
        self.advance(event.time_ms)
        self._index(event.item_id)
        request_id = self._click_lists.list_before(event)
        if request_id:
            return (msgspec.structs.replace(event, request_id=request_id),)
        self.sync_popularity()
        listed = self._click_lists.list_of(event, self.session(event.user_id))
        return listed, msgspec.structs.replace(event, request_id=listed.request_id)

    def sync_popularity(self) -> None:
        """Hands changed item counters to the replica's popularity, before candidates are retrieved."""
        if changed := self.item_counters.take_changed():
            self.replica.popularity.update(*self.item_counters.counters.export(changed))

    def fold(self, event: Event, viewers: Collection[str] | None = None) -> None:
        """Folds an event into sessions and counters without learning it: warm-up. ``viewers``: who have
        sessions; None: all."""
        if isinstance(event, Impression):
            indices = self._indices(event)  # first: the keys may grow by it
            keys = self.replica.catalogue.keys[indices]
            if viewers is None or str(event.user_id) in viewers:
                self.session(event.user_id).fold_impression(event, keys)
            self.item_counters.impression(event, keys)
        elif isinstance(event, Engagement):
            keys_I = self.keys_of(event.item_id)
            if viewers is None or str(event.user_id) in viewers:
                self.session(event.user_id).fold_engagement(event, keys_I)
            self.item_counters.engagement(event, keys_I)
            self.take_visits()

    def take_visits(self) -> None:
        """Adds visits one by one."""
        for visit in self.item_counters.visits.take()[:, None]:
            self.replica.covisits.add_within_limit(visit)

    def advance(self, now_ms: int) -> None:
        """Moves time: due steps are learned, and served from their next sync on."""
        if now_ms > self.now_ms:
            self.fold_moment()
        before_ms, self.now_ms = self.now_ms, max(self.now_ms, now_ms)
        self._held.extend(self.loop.advance(now_ms))
        if not self._held:
            return
        if self.sync_every_ms and before_ms // self.sync_every_ms == now_ms // self.sync_every_ms:
            return
        self.flush()
        for delta in self._held:
            self.replica.apply_step(delta)
        self._held.clear()

    def flush(self) -> None:
        """Scores all waiting impressions with the version that serves now."""
        if not self._waiting:
            return
        scores = probabilities(
            self.replica.model, self.replica.rows, [features for features, _ in self._waiting]
        )
        line, epoch, step = self.replica.version
        start = 0
        for features, impression in self._waiting:
            stop = start + len(features.items_NI)
            self.on_scored(ScoredImpression(impression, scores[start:stop], line, epoch, step))
            start = stop
        self._waiting.clear()

    def _impression(self, event: Impression) -> None:
        indices = self._indices(event)
        session = self.session(event.user_id)
        if event.features is None:
            self._lists += 1  # all are looked at first: later choices teach little more
            share = max(_EARLY / self._lists, _SHARE)
            if event.choice is msgspec.UNSET and is_looked_at(event.request_id, share):
                choice = self._choice_of(event, session, indices)
                event = msgspec.structs.replace(event, choice=choice)
            catalogue, counters = self.replica.catalogue, self.replica.counters
            features = self.pipeline.builder.build(
                session, event.surface, event.context, indices, catalogue, counters, event.time_ms,
                is_list=True, covisits=self.replica.covisits,
            )  # fmt: skip
            event = self._as_served(event, self.pipeline.builder.as_shown(features))
            self.constant.add(features.dense_NF)
            self._waiting.append((features, event))
            if len(self._waiting) >= _FLUSH:
                self.flush()
        self.loop.append(event)
        self._fold_after_moment(event)

    def _fold_after_moment(self, event: Impression | Engagement) -> None:
        """Folds an event; in a log of clicks once time moves on, so that none of a moment sees another."""
        self._moment.append(event)
        if self.features.schema.shown_by != "click":
            self.fold_moment()

    def fold_moment(self) -> None:
        """Folds the events of the newest moment."""
        moment, self._moment = self._moment, []
        for event in moment:
            self.fold(event)

    def _user(self, event: User) -> None:
        self.loop.append(event)
        if event.removed:
            self.session(event.user_id)  # with it goes what waits for the viewer
            del self.sessions[str(event.user_id)]
        elif str(event.user_id) in self.sessions or "profiling" in event.fields:
            self.session(event.user_id).fold_user(event)
        else:
            self._users[str(event.user_id)] = event
        self.item_counters.user(event)

    def _as_served(self, event: Impression, features: RequestFeatures) -> Impression:
        """The impression as the server would have written it."""
        line, epoch, step = self.replica.version
        return Impression(
            time_ms=event.time_ms, request_id=event.request_id, user_id=event.user_id,
            items=[ServedItem(item_id=s.item_id, sources=["log"]) for s in event.items],
            context=event.context, surface=event.surface, stamp=Stamp(line=line, epoch=epoch, step=step),
            features=features.block(), event_id=event.event_id, shown=event.shown, choice=event.choice,
        )  # fmt: skip

    def _choice_of(
        self, event: Impression, session: Session, indices: NDArray[np.int64]
    ) -> Choice | msgspec.UnsetType:
        """The candidates that the system would have had for a logged list."""
        self.sync_popularity()
        request = Request(event.user_id, len(indices), event.surface, event.context)
        query = Query(request, session, self._policy, event.time_ms, event.request_id)
        return self.pipeline.choice_of(query, indices) or msgspec.UNSET

    def _engagement(self, event: Engagement) -> None:
        self.loop.append(event)
        self._fold_after_moment(event)

    def _indices(self, event: Impression) -> NDArray[np.int64]:
        return np.array([self._index(served.item_id) for served in event.items], np.int64)

    def keys_of(self, item_id: Id) -> NDArray[np.int64]:
        """Keys of an item (I,), which is added without fields if it was never published."""
        index = self._index(item_id)  # first: the keys may grow by it
        keys_I: NDArray[np.int64] = self.replica.catalogue.keys[index]
        return keys_I

    def _index(self, item_id: Id) -> int:
        """Catalogue index; an item that was never published is added without fields."""
        index = self.replica.catalogue.index_of(item_id)
        if index is None:
            self.replica.apply_item(Item(time_ms=0, item_id=item_id), 0)
            index = self.replica.catalogue.index_of(item_id)
            assert index is not None
        return index
