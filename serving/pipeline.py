"""From a request to an answer, by named stages; one version, one stamp.

    filter          leaves out items gone, and those that ``FILTERS`` close (serving/filters/)
    retrieve        collects candidates, each source with its share (serving/sources/retrieval.py)
    shorten         under time pressure keeps the first candidates of each source
    given           takes the caller's own candidates instead of these three (serving/sources/named.py)
    pin             adds the items that the policy pins to ranks
    features, rank  predict engagements with each candidate and weigh them into one score (serving/scorers/)
    choose, rank_list
                    the choice model orders all candidates, the ranker orders the first ones as a list,
                    compared with each other where the feature set declares this
    limits          removes what the viewer doesn't want or mustn't see: ``LIMITS``
    not_interested, boosts, rules
                    change scores, and remove what the policy's rules close
    plug-ins        run: filters and scorers of other packages (serving/scorers/added_stages.py)
    draw            draws a list by score, caps, exploration and quota, with its propensities
                    (serving/selection/)

Each source, filter, scorer and selector is of one type, which a plug-in's is, too: ``Source``, ``Filter``,
``Scorer``, ``Selector``. Everything happens in one call on one thread: no stage waits or talks to another
process. Retrieval shards are asked before, with the result of ``plan`` (serving/retrieval/retrieval_plan.py).
Stages that fail or that the deadline skips are named in ``degraded``; there is an answer whatever happens to
the model.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from recsys import plugins
from recsys.arrays.bitmap import Bitmap
from recsys.events.event_types import Choice, Impression
from recsys.features.session import NOBODY
from recsys.model.choice_model import choice_size, reads_ranker
from serving.admission.deadline import POPULAR, SHORT, UNRANKED, first_of_each
from serving.answers.answer_assembly import AnswerAssembly
from serving.answers.choices import choice_among, is_looked_at
from serving.filters import conditions, excluded, history, policy_rules, safety, wishes
from serving.filters.filter import BLOCKED, EXCLUDED, FILTERED, HIDDEN, RULES, SAFETY, SEEN, Filters, close_by
from serving.query import Query, VectorVersion
from serving.query_features import QueryFeatures
from serving.replica.replica import Replica
from serving.request import Answer, Candidates, Slate
from serving.retrieval.retrieval_plan import SIMILAR, VECTOR, RetrievalPlan, VectorQuery
from serving.retrieval.source_shares import engaged_shares
from serving.scorers import (
    added_stages,
    boosts,
    choice,
    list_comparison,
    not_interested,
    ranker,
    weighted_sum,
)
from serving.selection import draw
from serving.sources.named import given_items, pinned_items, with_pinned
from serving.sources.retrieval import Retrieval
from serving.tracing.request_trace import FILTER, RANK, RETRIEVE, SELECT

# By the names in ``removed``, in order. Of the catalogue:
FILTERS: Final[Filters] = {
    FILTERED: conditions.Conditions(), EXCLUDED: excluded.Excluded(), HIDDEN: history.Hidden(),
    BLOCKED: wishes.Blocked(), SAFETY: safety.Safety(), RULES: policy_rules.ClosedByRules(),
    SEEN: history.Seen(),
}  # fmt: skip
LIMITS: Final = {name: FILTERS[name] for name in (BLOCKED, SAFETY)}  # of candidates, whoever named them
OF_GIVEN: Final = {name: FILTERS[name] for name in (EXCLUDED, FILTERED)}
OF_PINNED: Final = {name: FILTERS[name] for name in (HIDDEN, EXCLUDED, FILTERED, *LIMITS)}
BY_VIEWER: Final = {name: FILTERS[name] for name in FILTERS if name not in (SAFETY, RULES)}

Run = Callable[[Query, Candidates], Candidates]
_MOST_KEYS: Final = 20_000  # of items that rules close, in a request to retrieval shards
_MOST_HITS: Final = 20.0  # times as many are asked for where closed items are among them


@dataclass(frozen=True)
class Stage:
    """One step. ``skip``: the name under which the deadline skips it, and runs ``instead``. ``of_caller``:
    True or False: only with or only without candidates of the caller. ``span``: trace span that it ends."""

    name: str
    run: Run
    skip: str = ""
    instead: Run | None = None
    of_caller: bool | None = None
    span: str = ""


def run_stages(stages: Iterable[Stage], query: Query, candidates: Candidates) -> Candidates:
    given = query.request.candidate_ids is not None
    for stage in stages:
        if stage.of_caller in (None, given):
            skipped = stage.instead if stage.skip and query.deadline.skips(stage.skip) else None
            candidates = (skipped or stage.run)(query, candidates)
            if stage.span:
                query.mark(stage.span)
    return candidates


class Pipeline:
    """Answers queries from one replica. Not thread-safe: requests and applied updates take turns."""

    def __init__(self, replica: Replica, load: plugins.Load = plugins.load_version) -> None:
        self.replica, self.features = replica, QueryFeatures(replica)
        self.builder = self.features.builder
        self.retrieval, self._answers = Retrieval(replica, load), AnswerAssembly(replica, self.features)
        self.retrieving = (
            Stage("filter", partial(close_by, FILTERS, replica), of_caller=False, span=FILTER),
            Stage("retrieve", self._retrieve, POPULAR, self._retrieve_popular, of_caller=False),
            Stage("shorten", _unchanged, SHORT, self._shorten, of_caller=False, span=RETRIEVE),
        )
        self._rank = partial(ranker.Ranker(), replica)
        self._rank_list = partial(list_comparison.ListComparison(self.features), replica)
        self._draw, self._in_turns = draw.Draw(), draw.InTurns(self.adjusted)
        self.adjusting = (
            Stage("limits", self._limit),
            Stage("not_interested", partial(not_interested.NotInterested(), replica)),
            Stage("boosts", partial(boosts.Boosts(), replica)),
            Stage("rules", partial(close_by, {RULES: FILTERS[RULES]}, replica)),
            Stage("plug-ins", partial(added_stages.AddedStages(cache(load)), replica)),
        )
        self.stages = (
            *self.retrieving,
            Stage("given", partial(given_items, OF_GIVEN, replica), of_caller=True, span=RETRIEVE),
            Stage("pin", self._pin), Stage("features", self._build_features),
            Stage("rank", self._rank, UNRANKED, partial(ranker.ByPopularity(), replica), span=RANK),
            Stage("choose", partial(choice.Chances(), replica)), Stage("rank_list", self._rank_list),
            *self.adjusting, Stage("draw", self._select, span=SELECT),
        )  # fmt: skip

    def recommend(self, query: Query) -> Answer:
        """Answers with the list, and the impression that records how it was made."""
        query, results = without_profile_if_requested(query), query.shard_results
        if results is not None and results.version != self.version:
            query = replace(query, shard_results=None)
        candidates = run_stages(self.stages, query, self._viewer(query))
        return self._answers.assemble(query, candidates, self._choice_in(query, candidates))

    def candidates(self, query: Query) -> Candidates:
        """Candidates that the sources retrieve for a query, not ranked yet."""
        query = without_profile_if_requested(query)
        return run_stages(self.retrieving, query, self._viewer(query))

    def impression_of(self, query: Query, indices: list[int], choice: Choice) -> Impression:
        """Impression of a list of ``query.request.n`` items, by their indices, as if it had been answered,
        but without sources. ``choice``: what each stands for."""
        n, indices_N = len(indices), np.array(indices, np.int64)
        viewer = Candidates(self.features.of(query, indices_N))
        ranked = viewer.listed(indices_N, np.zeros_like(indices_N))
        for stage in (self._rank, self._rank_list):
            ranked = stage(query, ranked)
        slate = Slate(np.arange(n), np.ones(n), np.zeros(n, np.bool_), 0, {})
        return self._answers.assemble(query, ranked.drawn(slate, ranked.scores_N), choice).impression

    def choice_of(self, query: Query, listed: NDArray[np.int64]) -> Choice | None:
        """The candidates of the sources, a sample of which is looked at, that an engagement with an item of
        another's list chose from. None without any, without a choice model, and where clicks have lists of
        candidates (serving/click_lists.py)."""
        features = self.replica.features
        if not choice_size(features) or reads_ranker(features):
            return None
        query = replace(query, request=replace(query.request, candidate_ids=None))
        shares = engaged_shares(self.replica, query.policy.config.sources, query.now_ms)
        # Without those that a model has: what is learned mustn't depend on the version that served.
        shares = {name: share for name, share in shares.items() if name not in (VECTOR, SIMILAR)}
        filtered = close_by(FILTERS, self.replica, query, self._viewer(query))
        return choice_among(self.features, query, self._retrieve(query, filtered, shares).indices_N, listed)

    def adjusted(self, query: Query, candidates: Candidates) -> Candidates:
        """Ranked candidates as the query's policy scores and adjusts them, by the same predictions."""
        scored = weighted_sum.WeightedSum()(self.replica, query, candidates)
        return run_stages(self.adjusting, query, scored)

    def open_items(self, query: Query, indices: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Marks the items (n,) that the viewer's limits and the policy's rules let through."""
        items_NI = self.replica.catalogue.keys[indices]
        viewer = Candidates(replace(self.features.of(query), items_NI=items_NI))
        scored = viewer.listed(indices, np.zeros_like(indices)).scored(np.zeros(len(indices)))
        return run_stages(self.adjusting, query, scored).open_N

    def allowed_items(self, query: Query, filters: Filters = FILTERS) -> tuple[Bitmap, dict[str, int]]:
        """Items that may be retrieved, and removals by filter."""
        filtered = close_by(filters, self.replica, query, self._viewer(query))
        assert filtered.allowed is not None, "of the catalogue"
        return filtered.allowed, filtered.removed

    @property
    def version(self) -> VectorVersion:
        """Version of the item vectors, now."""
        return VectorVersion(*self.replica.version, self.replica.catalogue_offset)

    def plan(self, query: Query) -> RetrievalPlan | None:
        """Searches for the retrieval shards before ``recommend``; None without shards or searches, or where
        the query has results of this version."""
        given, results = query.request.candidate_ids is not None, query.shard_results
        if self.replica.indexed or given or query.deadline.skips(POPULAR):
            return None
        query = without_profile_if_requested(query)
        if results is not None and results.version == self.version:
            return None
        viewer, shares = self.features.of(query), self._shares(query)
        vector_queries = self.retrieval.vector_queries(query.session, viewer, shares)
        if not vector_queries:
            return None
        allowed, removed = self.allowed_items(query)
        if min(removed.get(SAFETY, 0) + removed.get(RULES, 0), allowed.count) > _MOST_KEYS:
            # Their keys would be a large part of the catalogue: what is closed is dropped from more hits.
            with_closed, _ = self.allowed_items(query, BY_VIEWER)
            more = min(_MOST_HITS, with_closed.count / allowed.count)
            vector_queries = tuple(replace(q, k=math.ceil(q.k * more)) for q in vector_queries)
            allowed = with_closed
        return self.planned(vector_queries, allowed)

    def planned(self, queries: tuple[VectorQuery, ...], allowed: Bitmap) -> RetrievalPlan:
        """Searches for the retrieval shards, which get the keys of the allowed items, or of the other living
        ones where these are fewer."""
        named = self.replica.catalogue.living.copy()
        named.subtract(allowed)
        if only := allowed.count < named.count:
            named = allowed
        keys = self.replica.catalogue.keys[np.flatnonzero(named.mask()), 0].copy()
        return RetrievalPlan(self.version, queries, keys, only)

    def pinned(self, query: Query, candidates: Candidates) -> dict[int, int]:
        """Catalogue indices by rank of the policy's pins that may be shown."""
        return pinned_items(OF_PINNED, self.replica, query, candidates)

    # --- stages ---

    def _retrieve(
        self, query: Query, candidates: Candidates, shares: dict[str, int] | None = None
    ) -> Candidates:
        allowed, n = candidates.allowed, query.request.n
        assert allowed is not None, "filter first"
        shares = self._shares(query) if shares is None else shares
        indices_N, sources_N, failed = self.retrieval.collect(query, candidates.features, allowed, shares)
        if len(indices_N) < n:
            others = allowed.first(n * 5)
            others = others[~np.isin(others, indices_N)]
            indices_N = np.concatenate([indices_N, others])
            sources_N = np.concatenate([sources_N, np.full(len(others), 1 << len(shares))])
        retrieved = candidates.listed(indices_N, sources_N, *shares, "any")
        return retrieved.degrade("retrieval") if failed else retrieved

    def _retrieve_popular(self, query: Query, candidates: Candidates) -> Candidates:
        popular = {"popular": self.replica.config.serve.candidates}
        return self._retrieve(query, candidates.degrade(POPULAR), popular)

    def _shorten(self, _: Query, candidates: Candidates) -> Candidates:
        most, names = self.replica.config.serve.short_candidates, candidates.source_names
        if len(candidates.indices_N) <= most:
            return candidates
        chosen = first_of_each(candidates.sources_N, most)
        shortened = candidates.listed(candidates.indices_N[chosen], candidates.sources_N[chosen], *names)
        return shortened.degrade(SHORT)

    def _pin(self, query: Query, candidates: Candidates) -> Candidates:
        return with_pinned(candidates, self.pinned(query, candidates))

    def _build_features(self, query: Query, candidates: Candidates) -> Candidates:
        features = self.features.of(query, candidates.indices_N, candidates.features)
        return candidates.having(features=features)

    def _limit(self, query: Query, candidates: Candidates) -> Candidates:
        limited = close_by(LIMITS, self.replica, query, candidates)
        return limited.having(limits_N=limited.open_N)

    def _select(self, query: Query, candidates: Candidates) -> Candidates:
        selector = self._in_turns if query.policy.rivals else self._draw
        return selector(self.replica, query, candidates)

    # --- helpers of stages ---

    def _viewer(self, query: Query) -> Candidates:
        """The living items of the catalogue, with the viewer's features."""
        living = self.replica.catalogue.living
        return Candidates(self.features.of(query), living, removed={"gone": len(living) - living.count})

    def _shares(self, query: Query) -> dict[str, int]:
        """Candidates per source. Before the first step no user vector has been learned."""
        shares = engaged_shares(self.replica, query.policy.config.sources, query.now_ms)
        if self.replica.step == 0:
            shares.pop(VECTOR, None)
        return shares

    def _choice_in(self, query: Query, candidates: Candidates) -> Choice | msgspec.UnsetType:
        """The choice of a list of the caller's candidates, which doesn't show what the sources have."""
        request, slate = query.request, candidates.slate
        if request.candidate_ids is None or request.filters or not is_looked_at(query.request_id):
            return msgspec.UNSET
        assert slate is not None, "draw first"
        return self.choice_of(query, candidates.indices_N[slate.positions]) or msgspec.UNSET


def without_profile_if_requested(query: Query) -> Query:
    """The query without the viewer's profile and history, where the request or the viewer wants that."""
    if query.session.user_id == NOBODY or not (query.request.plain or query.session.plain):
        return query
    return replace(query, session=query.session.without_profile())


def _unchanged(_: Query, candidates: Candidates) -> Candidates:
    return candidates
