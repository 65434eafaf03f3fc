"""Recall of retrieval in a replay: is an item that a viewer engages with next among the candidates?

For each judged engagement with the first label a query is made as of the impression that served the item
(the newest one, where it names none), or without one as of just before the engagement: over the whole
catalogue, with the viewer's session of then. Judged are each source by itself, the union as it is ranked, and
the whole path; by question (see ``questions``) the path beside simple lists, on the same rows.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from operator import length_hint
from typing import Any, Final

import numpy as np

from experiments.assignment.policy import Policies
from recsys.arrays.bitmap import Bitmap
from recsys.events.event_types import Engagement, Event, Impression, Item, User
from recsys.events.hashing import Id
from recsys.features.families.declared import Declared
from replay.datasets.app_dataset import OfApp
from replay.datasets.dataset import Dataset
from replay.judging.answers import Answers, QuestionedAnswers, rank_of
from replay.judging.asked_lists import AskedLists, simple_lists
from replay.judging.questions import pause_of
from replay.judging.simple_lists import Popularity, SimpleList
from replay.judging.targets import Targets
from replay.player import Player
from replay.replay_run import ReplayOptions
from serving.admission.deadline import first_of_each
from serving.query import Query
from serving.request import Request
from serving.retrieval.retrieval_plan import VECTOR

KS: Final = (10, 100, 300)
UNION: Final = "union"
PATH: Final = "retrieved and ranked"
SHOWN: Final = "shown of late, clicked or not"
_SHOWN_H: Final = 1.0  # half-life
_PAST: Final = 300_000  # newest rows before the replay that all lists learn: they hold little more


class RetrievalRecall:
    """Ranks of the judged items. ``before`` must get each event of the replay before the player."""

    def __init__(
        self, player: Player, targets: Targets, lists: AskedLists, past: Iterable[Event] = ()
    ) -> None:
        self._player, self._targets, self._lists = player, targets, lists
        self._past = iter(past)  # learned by the lists once the catalogue is there
        self._long_ago = max(0, length_hint(past) - _PAST)  # rows of it
        self._label = player.features.schema.labels[0]
        self._policies = Policies(player.config.policy)
        self._groups: dict[str, Answers] = defaultdict(Answers)
        self._counts: Counter[str] = Counter()
        self._shares: Counter[str] = Counter()
        self._new: Engagement | None = None  # played, but not learned by the lists
        self._shown = Popularity(_SHOWN_H)  # of items in logged lists

    def before(self, event: Event) -> None:
        if not isinstance(event, Item | User):
            for n, old in enumerate(self._past):
                self._learn(old, n < self._long_ago)
        if self._new is not None:
            self._learn(self._new)
            self._new = None
        if not isinstance(event, Impression | Engagement):
            return
        question = self._lists.question(str(event.user_id), event.time_ms)
        if items := self._targets.take(event, question):
            self._player.advance(event.time_ms)
            self._measure(event, items)
        self._new = event if isinstance(event, Engagement) else None
        if isinstance(event, Impression):
            for served in event.items:
                if (index := self._player.replica.catalogue.index_of(served.item_id)) is not None:
                    self._shown.learn("", index, event.time_ms)

    @property
    def answers(self) -> QuestionedAnswers:
        """Answers of this system and of the simple lists, by question."""
        return self._lists.answers

    def report(self) -> dict[str, Any]:
        """Figures by group and name, and by question. ``hits``: share of the union's hits that each source
        has."""
        hits = self._counts["union"] or 1
        groups = {group: answers.figures() for group, answers in self._groups.items()}
        for metric in ("ndcg@10", "mrr"):  # the union has no order
            figures = groups.get("path", {}).get(UNION, {})
            figures.pop(metric, None)
            figures.get("intervals", {}).pop(metric, None)
        return {
            "targets": self._counts["targets"],
            "from_ms": self._targets.from_ms,
            "not_published": self._counts["not published"],
            "seen_before": self._counts["seen"],
            **groups,
            "hits": {name: round(count / hits, 4) for name, count in self._shares.most_common()},
            "questions": self._lists.answers.report(),
            "curves": self._lists.answers.curves(),
        }

    def _learn(self, event: Event, is_long_ago: bool = False) -> None:
        if not isinstance(event, Engagement):
            return
        index = self._player.replica.catalogue.index_of(event.item_id)
        if index is None:
            return
        if event.kind == self._label:
            take = self._lists.recall if is_long_ago else self._lists.learn
            take(str(event.user_id), index, event.time_ms)
        else:
            self._lists.see(str(event.user_id), index)

    def _measure(self, event: Impression | Engagement, items: Sequence[Id]) -> None:
        player, catalogue = self._player, self._player.replica.catalogue
        user_id, now_ms = str(event.user_id), event.time_ms
        session = player.session(event.user_id)
        indices = [-1 if (i := catalogue.index_of(item)) is None else i for item in items]
        asked = [i for i in indices if self._lists.is_asked(user_id, i, now_ms)]
        seen = set[int]() if player.config.sessions.repeats else set(session.seen)
        wanted = [i for i in asked if i < 0 or int(catalogue.keys[i][0]) not in seen]
        self._counts["seen"] += len(items) - len(wanted)
        self._counts["targets"] += len(wanted)
        self._counts["not published"] += sum(target < 0 for target in wanted)
        if not wanted:
            return
        player.sync_popularity()
        context = event.context if isinstance(event, Impression) else {}
        query = Query(
            Request(event.user_id, surface=event.surface, context=context, by_score=True),
            session,
            self._policies.resolve(event.user_id),
            now_ms,
            event.request_id or f"{event.user_id}-{now_ms}",
        )
        allowed, _ = player.pipeline.allowed_items(query)
        ranks = self._measure_system(query, allowed, wanted)
        self._measure_shown(query, allowed, wanted)
        self._lists.ask(user_id, now_ms, wanted, ranks, allowed)

    def _measure_system(self, query: Query, allowed: Bitmap, wanted: Sequence[int]) -> list[int]:
        """Adds the ranks of the wanted items in sources, union and path; returns the last."""
        pipeline, replica = self._player.pipeline, self._player.replica
        candidates = pipeline.recommend(query).candidates
        assert candidates is not None, "made here, not read"
        places: dict[str, dict[int, int]] = {}  # ranks of items, by source
        for name in query.policy.config.sources:
            retrieved: Iterable[int] = ()
            if name != VECTOR or replica.step:
                viewer = candidates.features
                retrieved = pipeline.retrieval.collect(query, viewer, allowed, {name: KS[-1]})[0].tolist()
            places[name] = {item: rank for rank, item in enumerate(retrieved, 1)}
        indices = candidates.indices_N
        shortened = {k: {*indices[first_of_each(candidates.sources_N, k)].tolist()} for k in KS}
        positions = {index: position for position, index in enumerate(indices.tolist())}
        order = candidates.final_N + np.where(candidates.open_N, 0.0, -np.inf)
        path, user_id = ([rank_of(indices, order, target) for target in wanted], str(query.request.user_id))
        for target, rank in zip(wanted, path, strict=True):
            ranks = {name: own.get(target, 0) for name, own in places.items()}
            self._groups["sources"].add(user_id, self._lists.rows, ranks)
            within = min((k for k in KS if target in shortened[k]), default=0)
            self._groups["path"].add(user_id, self._lists.rows, {UNION: within, PATH: rank})
            if target in positions:
                self._shares.update(candidates.sources_of(positions[target]))
                self._counts["union"] += 1
        return path

    def _measure_shown(self, query: Query, allowed: Bitmap, wanted: Sequence[int]) -> None:
        """Adds the ranks of the wanted items by how often they were shown lately. Where this share is high, a
        log's next click tells what its site chose to show."""
        indices, scores = self._shown.scores("", query.now_ms)
        if not len(indices):
            return
        is_open = allowed[indices]
        indices, scores, user_id = indices[is_open], scores[is_open], str(query.request.user_id)
        for target in wanted:
            rank = rank_of(indices, scores, target)
            self._groups["exposure"].add(user_id, self._lists.rows, {SHOWN: rank})


def probe_for(
    dataset: Dataset, options: ReplayOptions, share: float = 1.0, cases: int | None = None,
    others: Sequence[SimpleList] = (),
) -> Callable[[Player], RetrievalRecall] | None:  # fmt: skip
    """The measurement of a share of the judged engagements, about ``cases`` of each question at most, beside
    simple lists and others; None for a share of 0."""
    if not 0 <= share <= 1:
        raise ValueError(f"--retrieval is {share}, expected a share of the engagements from 0 to 1")
    if not share:
        return None
    app = dataset.app if isinstance(dataset, OfApp) else None
    repeats, pause_s = (app is not None and app.repeats, pause_of(app.features if app else Declared()))
    targets = Targets(dataset, options, share, cases, pause_s, repeats)
    past = dataset.warmup() if options.warm_up else ()

    def probe(player: Player) -> RetrievalRecall:
        lists = AskedLists(pause_s, repeats, [*simple_lists(repeats), *others])
        return RetrievalRecall(player, targets, lists, past)

    return probe
