"""Recall of retrieval in a replay: is an item that a viewer engages with next among the candidates?

For each judged engagement with the first label a query is made as of the impression that served the item
(the newest one, where it names none), or without one as of just before the engagement: over the whole
catalogue, with the viewer's session of then. Judged are each source by itself, the union as it is ranked,
the whole path, and baselines on the same rows.
"""

from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from rich.table import Table

from benchmarks.studies.quality.retrieval_baselines import Baseline, baselines
from experiments.assignment.policy import Policies
from recsys.arrays.bitmap import Bitmap
from recsys.events.event_types import Engagement, Event, Impression, Item, User
from recsys.events.hashing import Id, key_of, uniform
from recsys.model.prediction_metrics import days
from replay.datasets.dataset import Dataset
from replay.player import Player
from replay.replay_run import Probe, ReplayOptions
from runtime.reports.tables import plain_table
from serving.admission.deadline import shorten_candidates
from serving.query import Query
from serving.request import Request
from serving.retrieval.filters import allowed_items
from serving.retrieval.retrieval_plan import VECTOR

Indices = NDArray[np.int64]
_Pair = tuple[str, str]  # user and item
KS: Final = (10, 100, 300)
UNION: Final = "union"
PATH: Final = "retrieved and ranked"
_SALT: Final = 0x5EED
_DAY_MS: Final = 86_400_000


class Targets:
    """Judged engagements of a log, found by a scan: a sample of those with the first label.

    By default the later half of the days is judged, of a single day the later half of its time. An item
    counts once a list; in a log without lists, where a request is no more than a visit, each engagement
    counts.
    """

    def __init__(self, dataset: Dataset, options: ReplayOptions, share: float) -> None:
        self._label, self._share = dataset.labels[0], share
        span = options.from_ms, options.until_ms
        self._has_lists = any(isinstance(event, Impression) for event in dataset.events(*span))
        unnamed: set[_Pair] = set()  # engagements without a request, in a log with lists
        keys, times = self._scan(dataset.events(*span), unnamed)
        if unnamed:
            keys, times = self._scan(dataset.events(*span), unnamed)
        time_N = np.array(times, np.int64)
        from_ms = options.judge_from_ms
        self.from_ms = _judged_from(time_N, dataset.utc_offset_h) if from_ms is None else from_ms
        self._left = set(np.array(keys, np.int64)[time_N >= self.from_ms].tolist())

    def _scan(
        self, events: Iterable[Event], unnamed: set[_Pair]
    ) -> tuple["array[int]", "array[int]"]:
        """Keys and times of the engagements. Those in ``unnamed`` belong to the newest list with their item;
        where it is empty, it is filled."""
        keys, times = array("q"), array("q")
        newest: dict[_Pair, str] = {}
        without = set[_Pair]()
        for event in events:
            if isinstance(event, Impression):
                pairs = [(str(event.user_id), str(item.item_id)) for item in event.items]
                newest.update((pair, event.request_id) for pair in pairs if pair in unnamed)
            elif isinstance(event, Engagement) and event.kind == self._label:
                pair = str(event.user_id), str(event.item_id)
                if not event.request_id:
                    without.add(pair)
                keys.append(self._key(event, event.item_id, newest.get(pair, "")))
                times.append(event.time_ms)
        if self._has_lists:
            unnamed |= without
        return keys, times

    def take(self, event: Event) -> list[Id]:
        """Items of the event whose query is due before it."""
        items: list[Id] = []
        if isinstance(event, Impression):
            items = [served.item_id for served in event.items]
        elif isinstance(event, Engagement) and event.kind == self._label:
            items = [event.item_id]
        due = {key: item for item in items if (key := self._key(event, item)) in self._left}
        self._left.difference_update(due)
        return [item for key, item in due.items() if uniform(_SALT, key) < self._share]

    def _key(self, event: Event, item_id: Id, request_id: str = "") -> int:
        """Key of an item in its list, which is that of its request, else ``request_id``; without one in its
        event."""
        assert isinstance(event, Impression | Engagement)
        within = (event.request_id or request_id) if self._has_lists else ""
        return key_of(within or f"{event.time_ms}\x1f{event.user_id}", item_id)


class RetrievalRecall:
    """Ranks of the judged items. ``before`` must get each event of the replay before the player."""

    def __init__(
        self,
        player: Player,
        targets: Targets,
        baselines: Sequence[Baseline] = (),
        past: Iterable[Event] = (),
    ) -> None:
        self._player, self._targets, self._baselines = player, targets, baselines
        self._past = iter(past)  # learned by the baselines once the catalogue is there
        self._label = player.features.schema.labels[0]
        self._policies = Policies(player.config.policy)
        self._ranks: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        self._counts: Counter[str] = Counter()
        self._shares: Counter[str] = Counter()
        self._new: Engagement | None = None  # played, but not learned by the baselines

    def before(self, event: Event) -> None:
        if not isinstance(event, Item | User):
            for old in self._past:
                self._learn(old)
        if self._new is not None:
            self._learn(self._new)
            self._new = None
        if items := self._targets.take(event):
            assert isinstance(event, Impression | Engagement)
            self._player.advance(event.time_ms)
            self._measure(event, items)
        self._new = event if isinstance(event, Engagement) else None

    def report(self) -> dict[str, Any]:
        """Metrics by group and name. ``hits``: share of the union's hits that each source has."""
        hits = self._counts["union"] or 1
        return {
            "targets": self._counts["targets"],
            "from_ms": self._targets.from_ms,
            "not_published": self._counts["not published"],
            "seen_before": self._counts["seen"],
            **{
                group: {name: _metrics(name, ranks) for name, ranks in by_name.items()}
                for group, by_name in self._ranks.items()
            },
            "hits": {name: round(count / hits, 4) for name, count in self._shares.most_common()},
        }

    def _learn(self, event: Event) -> None:
        if isinstance(event, Engagement) and event.kind == self._label:
            index = self._player.replica.catalogue.index_of(event.item_id)
            for baseline in self._baselines if index is not None else ():
                baseline.learn(str(event.user_id), int(index or 0), event.time_ms)

    def _measure(self, event: Impression | Engagement, items: Sequence[Id]) -> None:
        player, replica = self._player, self._player.replica
        player.sync_popularity()
        context = event.context if isinstance(event, Impression) else {}
        query = Query(
            Request(event.user_id, surface=event.surface, context=context, by_score=True),
            player.session(event.user_id),
            self._policies.resolve(event.user_id),
            event.time_ms,
            event.request_id or f"{event.user_id}-{event.time_ms}",
        )
        allowed, _ = allowed_items(replica, query)
        targets = [-1 if (i := replica.catalogue.index_of(item)) is None else i for item in items]
        self._counts["targets"] += len(targets)
        self._counts["not published"] += sum(target < 0 for target in targets)
        self._counts["seen"] += sum(target >= 0 and not allowed[target] for target in targets)
        self._measure_system(query, allowed, targets)
        for baseline in self._baselines:
            indices, scores = baseline.scores(str(event.user_id), event.time_ms)
            open_ = allowed[indices]
            self._note("baselines", baseline.name, targets, indices[open_], scores[open_])
            self._note("baselines", f"{baseline.name}, seen too", targets, indices, scores)

    def _measure_system(self, query: Query, allowed: Bitmap, targets: Sequence[int]) -> None:
        pipeline, replica = self._player.pipeline, self._player.replica
        answer = pipeline.recommend(query)
        candidates = answer.candidates
        assert candidates is not None, "made here, not read"
        for name in query.policy.config.sources:
            retrieved: list[int] = []
            if name != VECTOR or replica.step:
                viewer = candidates.features
                retrieved = [*pipeline.retrieval.collect(query, viewer, allowed, {name: KS[-1]})[0]]
            self._note("sources", name, targets, np.array(retrieved, np.int64))
        for target in targets:
            shortened = [k for k in KS if target in shorten_candidates(candidates.sources, k)]
            self._ranks["path"][UNION].append(min(shortened, default=0))
            names = candidates.sources.get(target, ())
            self._shares.update(names)
            self._counts["union"] += target in candidates.sources
        order = candidates.final_N + np.where(candidates.open_N, 0.0, -np.inf)
        self._note("path", PATH, targets, np.array(candidates.indices, np.int64), order)

    def _note(
        self,
        group: str,
        name: str,
        targets: Sequence[int],
        indices: Indices,
        scores: NDArray[np.float64] | None = None,
    ) -> None:
        """Adds the ranks of the targets among items, best first or with scores; of equal ones the first."""
        scores = -np.arange(len(indices), dtype=np.float64) if scores is None else scores
        self._ranks[group][name] += [rank_of(indices, scores, target) for target in targets]


def rank_of(indices: Indices, scores: NDArray[np.float64], target: int) -> int:
    (places,) = np.nonzero(indices == target)
    if not len(places) or scores[places[0]] == -np.inf:
        return 0
    score = scores[places[0]]
    return int((scores > score).sum() + (scores[: places[0]] == score).sum()) + 1


def rank_metrics(ranks: ArrayLike, ks: Sequence[int], k: int = 10) -> dict[str, float]:
    """Metrics of one wanted item a query, from its ranks (N,) among all items: 1 is first, 0 not retrieved.
    Recall at each of ``ks`` (with one item also the hit rate), nDCG at ``k``, mean reciprocal rank."""
    rank = np.asarray(ranks, np.float64)
    if not len(rank):
        return dict.fromkeys([*(f"recall@{n}" for n in ks), f"ndcg@{k}", "mrr"], float("nan"))
    rank = np.where(rank > 0, rank, np.inf)
    recall = {f"recall@{n}": float((rank <= n).mean()) for n in ks}
    ndcg = float(np.where(rank <= k, 1 / np.log2(rank + 1), 0.0).mean())
    return recall | {f"ndcg@{k}": ndcg, "mrr": float((1 / rank).mean())}


def _metrics(name: str, ranks: Sequence[int]) -> dict[str, float]:
    measured = rank_metrics(ranks, KS).items()  # the union has no order
    return {key: round(x, 4) for key, x in measured if name != UNION or key.startswith("recall")}


def _judged_from(time_N: Indices, utc_offset_h: float) -> int:
    if not len(time_N):
        return 0
    distinct = np.unique(days(time_N, utc_offset_h))
    if len(distinct) == 1:
        return int(time_N.min() + time_N.max()) // 2
    return int(distinct[-(len(distinct) // 2)]) * _DAY_MS - round(utc_offset_h * 3_600_000)


def probe_for(
    dataset: Dataset, options: ReplayOptions, share: float, others: Sequence[Baseline] = ()
) -> Callable[[Player], Probe] | None:
    """The measurement of a share of the judged engagements, with baselines and others; None for a share of
    0."""
    if not 0 <= share <= 1:
        raise ValueError(f"--retrieval is {share}, expected a share of the engagements from 0 to 1")
    if not share:
        return None
    targets = Targets(dataset, options, share)
    past = dataset.warmup() if options.warm_up else ()
    return lambda player: RetrievalRecall(player, targets, [*baselines(), *others], past)


def retrieval_table(retrieval: dict[str, Any]) -> Table:
    """Table of a report."""
    names = [f"recall@{k}" for k in KS] + ["ndcg@10", "mrr"]
    rows = [
        (name, *(f"{measured[column]:.4f}" if column in measured else "–" for column in names))
        for group in ("sources", "path", "baselines")
        for name, measured in retrieval.get(group, {}).items()
    ]
    title = f"Retrieval of {retrieval['targets']:,} engaged items"
    return plain_table(("retrieved by", *names), rows, title=title, right=names)
