"""Builds the list that a click chose from, where an app logs no lists.

It holds the clicked item; a sample of the candidates that retrieval had for the viewer, which are negatives
as the ranker meets them when it answers; and one living item of the whole catalogue, without which items that
retrieval didn't have would occur only as clicked ones. Draws are hashes of the request id. A replay builds
lists for a log's clicks, a replica for those that it takes. A click in a served list names both, since it is
a choice from that list, too."""

from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import msgspec
import numpy as np

from experiments.assignment.policy import Policy
from recsys.config.system_config import digest
from recsys.events.event_types import Choice, Engagement, Event, Impression, ServedItem, event_id_of
from recsys.events.hashed_random import draws
from recsys.events.hashing import Id, digest_of, key_of
from recsys.events.records import CLICK_LIST
from recsys.features.session import PLAIN_LIST, Session
from serving.pipeline import Pipeline
from serving.query import Query
from serving.request import Request

OLD, UNKNOWN, PLAIN = "old", "unknown item", "without profile"
BUSY, AWAY, FAILED = "busy", "away", "failed"  # of the replica, or of the session store
LEFT_OUT: Final = (OLD, UNKNOWN, PLAIN, BUSY, AWAY, FAILED)  # why a click has no list
_REMEMBERED: Final = 100_000  # clicks whose list further labels may join
_OTHERS: Final = 5  # candidates beside the clicked item
_ANYWHERE: Final = -np.arange(1, 65)  # draws from the whole catalogue until one is a living item
_OLDEST_MS: Final = 3_600_000  # age of a click whose features aren't gone yet


class ClickLists:
    """Makes lists from the sources of a pipeline. ``left_out``: clicks that a replica made none of."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline, config = pipeline, pipeline.replica.config.policy
        self._policy = Policy(config, digest(config))
        self._lists = OrderedDict[tuple[str, str], str]()
        self.left_out = Counter[str]()

    def list_before(self, event: Engagement) -> str:
        """The list of the viewer's last click on an item, where a later kind of label follows; else empty."""
        if event.kind == self._pipeline.replica.features.schema.labels[0]:
            return ""
        return self._lists.get((str(event.user_id), str(event.item_id)), "")

    def list_of(self, click: Engagement, session: Session) -> Impression:
        """The list from which the item was clicked; it precedes the click."""
        query = self._query(click, session, click.time_ms)
        request_id = _logged_id(query.request_id)
        self._remember(click, request_id)
        item_ids, choice = self._choice(click, query)
        return Impression(
            time_ms=click.time_ms,
            request_id=request_id,
            user_id=click.user_id,
            items=[ServedItem(item_id=item_id) for item_id in item_ids],
            surface=click.surface,
            choice=choice,
        )

    def needs_list(self, event: Engagement) -> bool:
        """Whether an engagement is learned with a list of candidates."""
        return event.attributed and event.kind in self._pipeline.replica.features.schema.labels

    def leave_out(self, click: Engagement, why: str) -> tuple[Event, ...]:
        """A click without a list, counted."""
        self.left_out[why] += 1
        return (click,)

    def listed(
        self, click: Engagement, session: Session, now_ms: int, guessed: bool = False
    ) -> tuple[Event, ...]:
        """A click that has just come, after its list as a replica logs it; alone if it gets none.
        ``guessed``: its client can't name lists, so that it may belong to one that the session has."""
        event_id = event_id_of(click)  # of the click as it came
        if session.plain:  # the id keeps it out of histories and co-visits
            request_id = click.request_id or PLAIN_LIST
            click = msgspec.structs.replace(click, request_id=request_id, event_id=event_id)
            return self.leave_out(click, PLAIN)
        if now_ms - click.time_ms > _OLDEST_MS:
            return self.leave_out(click, OLD)
        if self._pipeline.replica.catalogue.index_of(click.item_id) is None:
            return self.leave_out(click, UNKNOWN)
        requests = (request_id for request_id, _ in session.requests)
        is_served = bool(click.request_id) or (
            guessed and not all(request_id.startswith(CLICK_LIST) for request_id in requests)
        )
        if is_served and self.list_before(click):
            return (click,)  # the joiner has the candidates of the click before it
        query = self._query(click, session, now_ms)
        named = _logged_id(query.request_id)
        if is_served:
            self._remember(click, click.request_id)
            joined = msgspec.structs.replace(click, choice=named, event_id=event_id)
        else:
            before = self._logged_before(click, session)
            if not before:
                self._remember(click, named)
            # The same again joins no list, since that of the first time may not have been committed.
            joined = msgspec.structs.replace(click, request_id=before or named, event_id=event_id)
            if before and before != named:
                return (joined,)
        index_of = self._pipeline.replica.catalogue.index_of
        item_ids, choice = self._choice(click, query)
        indices = [i for i in map(index_of, item_ids) if i is not None]
        request = replace(query.request, n=len(indices))
        query = replace(query, request=request, request_id=named)
        return self._pipeline.impression_of(query, indices, choice), joined

    def _logged_before(self, event: Engagement, session: Session) -> str:
        """As ``list_before``; the session has lists of other replicas, too."""
        if event.kind == session.features.schema.labels[0]:
            return ""
        if request_id := self.list_before(event):
            return request_id
        item = key_of("item", event.item_id)
        requests = (e.request_id for e in reversed(session.history) if e.keys[0] == item)
        return next((name for name in requests if name.startswith(CLICK_LIST)), "")

    def _query(self, click: Engagement, session: Session, now_ms: int) -> Query:
        """The request that the list answers. Its id is derived from the click: a repeat has the same list,
        and so has the click in whatever list it was made."""
        about = "", click.user_id, click.time_ms, click.item_id, click.kind
        request_id = ":".join(map(str, about))
        request = Request(click.user_id, 1, click.surface)
        return Query(request, session, self._policy, now_ms, request_id)

    def _choice(self, click: Engagement, query: Query) -> tuple[Sequence[Id], Choice]:
        """The items, each once, the clicked one first, and how many candidates each stands for."""
        catalogue = self._pipeline.replica.catalogue
        candidates = self._pipeline.candidates(query).indices_N
        indices = candidates[candidates != catalogue.index_of(click.item_id)]
        # Not the draws of the request: by these the sources have chosen.
        seed = key_of("click list", query.request_id) & 0xFFFFFFFF
        others = indices[np.argsort(draws(seed, indices))[:_OTHERS]].tolist()
        drawn = (draws(seed, _ANYWHERE) * len(catalogue)).astype(np.int64)
        anywhere = drawn[catalogue.alive[drawn]][:1].tolist()
        each, had = len(indices) / max(1, len(others)), len(indices) < len(candidates)
        standing = {click.item_id: float(had)} | {catalogue.ids[i]: each for i in others}
        item_ids = [*dict.fromkeys([*standing, *(catalogue.ids[i] for i in anywhere)])]
        standing_N = np.array([standing.get(item_id, 0.0) for item_id in item_ids], np.float32)
        return item_ids, Choice(standing_N.tobytes())

    def _remember(self, click: Engagement, request_id: str) -> None:
        """Notes the list that a further label of the item joins; "" if the joiner has to find it."""
        self._lists[str(click.user_id), str(click.item_id)] = request_id
        if len(self._lists) > _REMEMBERED:
            self._lists.popitem(last=False)


def _logged_id(request_id: str) -> str:
    """Id of a list of candidates: without the names that are in it."""
    return CLICK_LIST + digest_of(request_id)
