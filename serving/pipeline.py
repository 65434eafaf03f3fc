"""From a request to an answer, by named stages; one version, one stamp.

    filter          leaves out items gone, filtered, excluded, hidden or seen, and those that safety rules or
                    rules of the policy (of two policies: of both) close (serving/retrieval/filters.py)
    retrieve        collects candidates, each source with its share (serving/sources/retrieval.py)
    shorten         under time pressure keeps the first candidates of each source
    given           takes the caller's own candidates instead of these three
    pin             adds the items that the policy pins to ranks
    features, rank  predict engagements with each candidate and weigh them into one score
    choose, rank_list
                    the choice model orders all candidates (recsys/model/choice_model.py), the ranker orders
                    the first ones as a list, compared with each other where the feature set declares this
    limits          removes what the viewer doesn't want or mustn't see (serving/retrieval/filters.py)
    not_interested, rules
                    change scores or remove candidates (serving/ranking/stages.py)
    plug-ins        change scores or remove candidates, too (serving/ranking/added_stages.py)
    draw            draws a list by score, caps, exploration and quota, with its propensities
                    (serving/ranking/selection.py, team_draft.py)

Everything happens in one call on one thread: no stage waits or talks to another process. Retrieval shards are
asked before, with the result of ``plan`` (serving/retrieval/retrieval_plan.py). Stages that fail or that the
deadline skips are named in ``degraded``; there is an answer whatever happens to the model.
"""

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, Final, TypeGuard

import msgspec
import numpy as np
from numpy.typing import NDArray

from experiments.assignment.policy import Policy
from recsys import plugins
from recsys.arrays.bitmap import Bitmap
from recsys.config.policy_config import MAX_LIST_LENGTH
from recsys.events.event_types import Choice, Impression, RequestInputs, ServedItem, Stamp
from recsys.events.hashed_random import draws
from recsys.events.hashing import Id, key_of, uniform
from recsys.features.counters import CounterTable
from recsys.features.feature_builder import FeatureBuilder
from recsys.features.request_features import RequestFeatures
from recsys.features.session import NOBODY
from recsys.model.choice_model import choice_size, log_odds, reads_ranker, utilities
from recsys.model.ranker import watch_seconds
from recsys.observability.log_lines import LogThrottle
from serving.admission.deadline import POPULAR, SHORT, UNRANKED, shorten_candidates
from serving.query import Query, VectorVersion
from serving.ranking.added_stages import run_added
from serving.ranking.explanation import explain
from serving.ranking.scoring import popular_scores, probabilities
from serving.ranking.selection import BY_SCORE, SamplingInput, SamplingParams, level, sample_slate
from serving.ranking.stages import NOT_INTERESTED, RULES, caps_of, not_interested, rules, trust_of
from serving.ranking.team_draft import draft_slate
from serving.replica.replica import Replica
from serving.request import Answer, AnswerItem, Candidates, Slate
from serving.retrieval import filters
from serving.retrieval.retrieval_plan import SIMILAR, VECTOR, RetrievalPlan, VectorQuery
from serving.retrieval.source_shares import engaged_shares
from serving.sources.retrieval import Retrieval
from serving.tracing.request_trace import FILTER, RANK, RETRIEVE, SELECT

_log = logging.getLogger(__name__)
Floats = NDArray[np.float32]
Run = Callable[[Query, Candidates], Candidates]
_NO_ITEMS: Final = np.zeros(0, np.int64)
_SHARE: Final = 0.125  # of the lists of others whose choices are looked at
_SEED: Final = 0xC401
_OTHERS: Final = 16  # candidates that a choice looks at
_LEAST: Final = 1e-9  # score
CHOICE: Final = "choice"  # in ``Candidates.added``
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
        self.replica = replica
        self.builder = FeatureBuilder(replica.features)
        self.retrieval, self._failures = Retrieval(replica, load), LogThrottle()
        self.adjustments = (
            Stage("limits", self._limit),
            Stage(NOT_INTERESTED, partial(not_interested, replica)),
            Stage(RULES, partial(rules, replica)),
            Stage("plug-ins", partial(run_added, cache(load), self._failures, replica)),
        )
        self.retrieving = (
            Stage("filter", self._filter, of_caller=False, span=FILTER),
            Stage("retrieve", self._retrieve, POPULAR, self._retrieve_popular, of_caller=False),
            Stage("shorten", _unchanged, SHORT, self._shorten, of_caller=False, span=RETRIEVE),
        )
        self.stages = (
            *self.retrieving, Stage("given", self._give, of_caller=True, span=RETRIEVE),
            Stage("pin", self._pin), Stage("features", self._build_features),
            Stage("rank", self._rank, UNRANKED, self._rank_by_popularity, span=RANK),
            Stage("choose", self._choose), Stage("rank_list", self._rank_list), *self.adjustments,
            Stage("draw", self._draw, span=SELECT),
        )  # fmt: skip

    def recommend(self, query: Query) -> Answer:
        """Answers with the list, and the impression that records how it was made."""
        query, results = without_profile_if_requested(query), query.shard_results
        if results is not None and results.version != self.version:
            query = replace(query, shard_results=None)
        viewer = Candidates(self._features(query))
        return self._assemble(query, run_stages(self.stages, query, viewer))

    def candidates(self, query: Query) -> Candidates:
        """Candidates that the sources retrieve for a query, not ranked yet."""
        query = without_profile_if_requested(query)
        return run_stages(self.retrieving, query, Candidates(self._features(query)))

    def impression_of(self, query: Query, indices: list[int], choice: Choice) -> Impression:
        """Impression of a list of ``query.request.n`` items, by their indices, as if it had been answered,
        but without sources. ``choice``: what each stands for."""
        n, features = len(indices), self._features(query, np.array(indices, np.int64))
        sources: dict[int, list[str]] = {index: [] for index in indices}
        ranked = self._rank_list(query, self._rank(query, Candidates(features, sources=sources)))
        slate = Slate(np.arange(n), np.ones(n), np.zeros(n, np.bool_), 0, {})
        listed = ranked.having(slate=slate, slate_scores_R=ranked.scores_N)
        impression = self._assemble(query, listed).impression
        impression.choice = choice
        return impression

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
        viewer = self._filter(query, Candidates(self._features(query)))
        indices = np.array(self._retrieve(query, viewer, shares).indices, np.int64)
        others = indices[~np.isin(indices, listed)]
        if not len(others):
            return None
        seed = key_of("choice", query.request_id) & 0xFFFFFFFF
        sample = others[np.argsort(draws(seed, others))[:_OTHERS]]
        others_KF, each = self._features(query, sample).dense_NF, len(others) / len(sample)
        standing_N = np.isin(listed, indices).astype(np.float32)
        return Choice(standing_N.tobytes(), others_KF.tobytes(), each)

    def adjusted(self, query: Query, candidates: Candidates) -> Candidates:
        """Ranked candidates as the query's policy scores and adjusts them, by the same predictions."""
        scores_N, predictions_NL = candidates.scores_N, candidates.predictions_NL
        if _has_numbers(predictions_NL):
            scores_N = self.score(predictions_NL, query.policy)
        candidates, chances_N = candidates.scored(scores_N), candidates.chances_N
        if chances_N is not None:
            best, odds_N = _best(chances_N, scores_N, query.request.n)
            candidates = candidates.add_scores(CHOICE, _lowered(scores_N, best, odds_N))
        return run_stages(self.adjustments, query, candidates)

    def open_items(self, query: Query, indices: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Marks the items (n,) that the viewer's limits and the policy's rules let through."""
        viewer = self._features(query)
        features = replace(viewer, items_NI=self.replica.catalogue.keys[indices])
        candidates = Candidates(features, sources={index: [] for index in indices.tolist()})
        scored = candidates.scored(np.zeros(len(indices)))
        return run_stages(self.adjustments, query, scored).open_N

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
        viewer = self._features(query)
        vector_queries = self.retrieval.vector_queries(query.session, viewer, self._shares(query))
        if not vector_queries:
            return None
        allowed, removed = filters.allowed_items(self.replica, query)
        if min(removed.get(filters.SAFETY, 0) + removed.get(RULES, 0), allowed.count) > _MOST_KEYS:
            # Their keys would be a large part of the catalogue: what is closed is dropped from more hits.
            with_closed, _ = filters.allowed_items(self.replica, query, by_rules=False)
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

    # --- stages ---

    def _filter(self, query: Query, candidates: Candidates) -> Candidates:
        allowed, removed = filters.allowed_items(self.replica, query)
        return candidates.having(allowed=allowed, removed=removed)

    def _retrieve(
        self, query: Query, candidates: Candidates, shares: dict[str, int] | None = None
    ) -> Candidates:
        allowed, n = candidates.allowed, query.request.n
        assert allowed is not None, "filter first"
        shares = self._shares(query) if shares is None else shares
        sources, failed = self.retrieval.collect(query, candidates.features, allowed, shares)
        if len(sources) < n:
            for index in allowed.first(n * 5).tolist():
                sources.setdefault(index, ["any"])
        candidates = candidates.having(sources=sources)
        return candidates.degrade("retrieval") if failed else candidates

    def _retrieve_popular(self, query: Query, candidates: Candidates) -> Candidates:
        popular = {"popular": self.replica.config.serve.candidates}
        return self._retrieve(query, candidates.degrade(POPULAR), popular)

    def _shorten(self, _: Query, candidates: Candidates) -> Candidates:
        most = self.replica.config.serve.short_candidates
        if len(candidates.sources) <= most:
            return candidates
        shortened = shorten_candidates(candidates.sources, most)
        return candidates.having(sources=shortened).degrade(SHORT)

    def _give(self, query: Query, candidates: Candidates) -> Candidates:
        indices, left_out = filters.given_items(self.replica, query)
        removed = {filters.UNKNOWN: 0, filters.EXCLUDED: 0} | Counter(left_out.values())
        sources = {index: ["given"] for index in indices}
        return candidates.having(sources=sources, left_out=left_out, removed=removed)

    def _pin(self, query: Query, candidates: Candidates) -> Candidates:
        pinned = filters.pinned_items(self.replica, query, candidates)
        sources = {**candidates.sources, **{index: ["fixed"] for index in pinned.values()}}
        return candidates.having(pinned=pinned, sources=sources) if pinned else candidates

    def _build_features(self, query: Query, candidates: Candidates) -> Candidates:
        features = self._features(query, candidates.indices_N, candidates.features)
        return candidates.having(features=features)

    def _rank(self, query: Query, candidates: Candidates) -> Candidates:
        replica = self.replica
        if replica.step == 0:
            return self._rank_by_popularity(query, candidates)
        try:
            read = replica.read(candidates.features)
            predictions_NL = probabilities(replica.model, replica.rows, [read])
            # Logged even if they are not numbers: they tell a broken model from a late one.
            candidates = candidates.having(predictions_NL=predictions_NL)
            if not _has_numbers(predictions_NL) and candidates.sources:
                raise FloatingPointError("no candidate has a prediction that is a number")
        except Exception:
            self._failures.exception(_log, "ranking failed", query.now_ms / 1000)
            return self._rank_by_popularity(query, candidates, "rank")
        return candidates.scored(self.score(predictions_NL, query.policy))

    def _choose(self, query: Query, candidates: Candidates) -> Candidates:
        """By the choice model, how much more or less likely than the ranker says each candidate is taken."""
        replica = self.replica
        weights_W = replica.model.choice.weights_W.detach().numpy()
        n, count = query.request.n, len(candidates.sources)
        if not _has_numbers(candidates.predictions_NL) or not weights_W.any() or n >= count:
            return candidates
        dense_NF = replica.read(candidates.features).dense_NF
        engaged_N = log_odds(candidates.predictions_NL[:, 0])
        utilities_N = utilities(weights_W, dense_NF, engaged_N, replica.model.features)
        return candidates.having(chances_N=utilities_N + np.logaddexp(0, -engaged_N))

    def _rank_list(self, query: Query, candidates: Candidates) -> Candidates:
        predictions_NL, replica = candidates.predictions_NL, self.replica
        if not _has_numbers(predictions_NL):
            return candidates
        scores_N, chances_N, odds_N = candidates.scores_N, candidates.chances_N, None
        if chances_N is None:
            best = np.argsort(-scores_N, kind="stable")[: query.request.n]
        else:
            best, odds_N = _best(chances_N, scores_N, query.request.n)
        if replica.model.features.list_columns:
            listed = best[:MAX_LIST_LENGTH]  # comparing takes time in n²
            predictions_NL = predictions_NL.copy()
            features = replica.read(self._listed(candidates.features, listed))
            predictions_NL[listed] = probabilities(replica.model, replica.rows, [features])
            candidates = candidates.having(predictions_NL=predictions_NL)
        scores_N = self.score(predictions_NL, query.policy)
        candidates = candidates.scored(scores_N)
        if odds_N is None:
            return candidates
        return candidates.add_scores(CHOICE, _lowered(scores_N, best, odds_N))

    def _rank_by_popularity(self, _: Query, candidates: Candidates, reason: str = UNRANKED) -> Candidates:
        reason = "model" if self.replica.step == 0 else reason
        scores_N = popular_scores(self.replica.popularity.values[candidates.indices_N])
        return candidates.scored(scores_N).degrade(reason)

    def _limit(self, query: Query, candidates: Candidates) -> Candidates:
        limits = filters.viewer_limits(self.replica, query, candidates.indices_N)
        for name, closed_N in limits.items():
            candidates = candidates.keep(name, ~closed_N)
        return candidates.having(limits_N=candidates.open_N)

    def _draw(self, query: Query, candidates: Candidates) -> Candidates:
        n, request_id, scores_N = query.request.n, query.request_id, candidates.scores_N
        control = self.sampling_input(query, candidates)
        if query.policy.rivals:
            (control_name, _), (name, policy) = query.policy.rivals
            query = replace(query, policy=policy)
            treated = self.adjusted(query, candidates)
            # By another name than a stage that both went without: reconstruction skips these for both.
            lost = [f"{s} ({name})" for s in treated.degraded if s not in candidates.degraded]
            candidates = candidates.having(degraded=(*candidates.degraded, *lost))
            inputs = control, self.sampling_input(query, treated)
            slate = draft_slate(inputs, n, (control_name, name), request_id=request_id)
            both = treated.scores_N[slate.positions], scores_N[slate.positions]
            scores_R = np.where(np.array(slate.drawers, np.bool_), *both)
        else:
            slate = sample_slate(control, n, request_id=request_id)
            scores_R = scores_N[slate.positions]
        removed = candidates.removed | slate.closed
        return candidates.having(slate=slate, slate_scores_R=scores_R, removed=removed)

    # --- helpers of stages, and of reconstruction ---

    def score(self, predictions_NL: Floats, policy: Policy) -> NDArray[np.float64]:
        """The weighted sum of predicted engagements; watch time counts in minutes."""
        labels = self.replica.features.schema.labels
        weights = policy.config.weights
        total = np.zeros(len(predictions_NL))
        for k, label in enumerate(labels):
            total += weights.get(label, 0.0) * predictions_NL[:, k]
        minutes = watch_seconds(predictions_NL[:, len(labels)]) / 60.0
        out: NDArray[np.float64] = total + weights.get("watch", 0.0) * minutes
        return out

    def sampling_input(self, query: Query, candidates: Candidates) -> SamplingInput:
        """Input of the draw: candidates as ``adjusted`` for the query's policy."""
        config, replica = query.policy.config, self.replica
        indices = candidates.indices_N
        unit = level(candidates.scores_N) if config.relative else 1.0
        temperature = config.temperature * (unit or 1.0)
        exploration = temperature, config.explore, config.quota, config.diversity
        params = BY_SCORE if query.request.by_score else SamplingParams(*exploration)
        return SamplingInput(
            candidates.final_N, params, caps_of(replica, query, candidates),
            trust_of(replica.popularity.shown[indices], config),
            replica.vectors_of(indices) if params.diversity else None, candidates.open_N,
            {rank: candidates.indices.index(i) for rank, i in candidates.pinned.items()},
        )  # fmt: skip

    def _shares(self, query: Query) -> dict[str, int]:
        """Candidates per source. Before the first step no user vector has been learned."""
        shares = engaged_shares(self.replica, query.policy.config.sources, query.now_ms)
        if self.replica.step == 0:
            shares.pop(VECTOR, None)
        return shares

    def _listed(self, features: RequestFeatures, chosen: NDArray[np.int64]) -> RequestFeatures:
        """Features of some candidates as a list: compared with each other."""
        listed = features.rows(chosen)
        self.builder.compare(listed.dense_NF)
        return listed

    def _features(
        self,
        query: Query,
        indices: NDArray[np.int64] = _NO_ITEMS,
        viewer: RequestFeatures | None = None,
        counters: CounterTable | None = None,
    ) -> RequestFeatures:
        request, replica = query.request, self.replica
        return self.builder.build(
            query.session, request.surface, request.context, indices,
            replica.catalogue, replica.counters if counters is None else counters, query.now_ms, viewer,
            covisits=replica.covisits,
        )  # fmt: skip

    # --- the answer ---

    def _choice_in(self, query: Query, listed: NDArray[np.int64]) -> Choice | msgspec.UnsetType:
        """The choice of a list of the caller's candidates, which doesn't show what the sources have."""
        request = query.request
        if request.candidate_ids is None or request.filters or not is_looked_at(query.request_id):
            return msgspec.UNSET
        return self.choice_of(query, listed) or msgspec.UNSET

    def _assemble(self, query: Query, candidates: Candidates) -> Answer:
        slate, request = candidates.slate, query.request
        assert slate is not None, "draw first"
        positions_R, predictions_NL = slate.positions, candidates.predictions_NL
        stamp, predicted = self._stamp(query), b""
        if predictions_NL is not None:
            predicted = np.ascontiguousarray(predictions_NL[positions_R], np.float32).tobytes()
        # A longer list isn't logged.
        listed = self._listed(candidates.features, positions_R[:MAX_LIST_LENGTH])
        items = self._items(query, candidates, slate)
        if request.explain and items:
            ranked = _has_numbers(predictions_NL)
            reasons = self._explain(query, [candidates.indices[p] for p in positions_R], ranked)
            pairs = zip(items, reasons, strict=True)
            items = tuple(msgspec.structs.replace(item, reasons=why) for item, why in pairs)
        impression = Impression(
            time_ms=query.now_ms, request_id=query.request_id, user_id=request.user_id,
            items=[_served(item) for item in items], context=request.context, surface=request.surface,
            stamp=stamp, features=self.builder.as_shown(listed).block(), predicted=predicted,
            degraded=list(candidates.degraded), inputs=self._inputs(query), teams=list(slate.teams),
            shares=list(slate.shares), choice=self._choice_in(query, candidates.indices_N[positions_R]),
        )  # fmt: skip
        return Answer(
            query.request_id, items, impression, stamp, candidates.degraded, candidates.removed,
            slate.offered, self._left_out(query, candidates, items), candidates,
        )  # fmt: skip

    def _left_out(self, query: Query, candidates: Candidates, items: tuple[AnswerItem, ...]) -> dict[Id, str]:
        """Candidates of the caller that the list had room for, with the reason why it lacks them."""
        left_out = dict(candidates.left_out)
        if query.request.candidate_ids is not None and len(items) < query.request.n:
            ids, listed = self.replica.catalogue.ids, {item.item_id for item in items}
            ranked = (ids[index] for index in candidates.indices)
            left_out |= {item_id: filters.CLOSED for item_id in ranked if item_id not in listed}
        return left_out

    def _explain(self, query: Query, indices: list[int], ranked: bool) -> list[tuple[dict[str, Any], ...]]:
        """Reasons for each item. ``ranked``: by predictions; without them no reason has an effect."""
        replica, indices_R = self.replica, np.array(indices, np.int64)

        def score(query: Query, counters: CounterTable) -> NDArray[np.float64]:
            if not ranked:
                return np.zeros(len(indices_R))
            features = self._features(query, indices_R, counters=counters)
            listed = replica.read(self._listed(features, np.arange(len(indices_R))))
            predictions = probabilities(replica.model, replica.rows, [listed])
            return self.score(predictions, query.policy)

        return explain(score, query, replica.catalogue, replica.counters, indices)

    def _stamp(self, query: Query) -> Stamp:
        replica, results = self.replica, query.shard_results
        return Stamp(
            **replica.version._asdict(),
            catalogue_offset=replica.catalogue_offset,
            item_state_offset=replica.item_state_offset,
            session_offset=query.session.offset,
            policy=query.policy.digest,
            arms=dict(query.policy.arms),
            index=replica.index.name if results is None else results.index,
        )

    def _inputs(self, query: Query) -> RequestInputs:
        request, replica = query.request, self.replica
        return RequestInputs(
            n=request.n, exclude_ids=list(request.exclude_ids),
            candidate_ids=None if request.candidate_ids is None else list(request.candidate_ids),
            candidates=replica.config.serve.candidates,
            source_floor=replica.config.serve.source_floor, session=query.session.digest,
            item_state_from=replica.item_state_from, counted=replica.counted,
            by_score=request.by_score, plain=query.session.plain,
            safety=replica.config.safety.digest, filters=dict(request.filters),
            stages=list(replica.config.serve.stages),
        )  # fmt: skip

    def _items(self, query: Query, candidates: Candidates, slate: Slate) -> tuple[AnswerItem, ...]:
        catalogue, items = self.replica.catalogue, list[AnswerItem]()
        predictions_NL = candidates.predictions_NL if query.request.explain else None
        columns = slate.positions, candidates.slate_scores_R, slate.propensities, slate.trial_R
        rows = zip(*(column.tolist() for column in columns), strict=True)
        for rank, (position, score, propensity, on_trial) in enumerate(rows):
            index, is_number = candidates.indices[position], math.isfinite(score)
            predictions = None
            if predictions_NL is not None and is_number:
                predictions = self._named(predictions_NL[position])
            item = AnswerItem(
                item_id=catalogue.ids[index],
                rank=rank,
                score=score if is_number else None,
                propensity=propensity,
                sources=(*candidates.sources[index], *(("quota",) if on_trial else ())),
                fields=catalogue.fields[index],
                predictions=predictions,
            )
            items.append(item)
        return tuple(items)

    def _named(self, predictions_L: Floats) -> dict[str, float] | None:
        """Predictions by label, and the watch time in seconds; None where one is not a number."""
        if not np.isfinite(predictions_L).all():
            return None
        labels = self.replica.features.schema.labels
        named = {label: float(p) for label, p in zip(labels, predictions_L, strict=False)}
        return named | {"watch_s": float(watch_seconds(predictions_L[len(labels)]))}


def is_looked_at(request_id: str, share: float = _SHARE) -> bool:
    """Whether a list that the sources didn't make tells what its viewer chose from: a share of them, by hash,
    since retrieval takes milliseconds."""
    return uniform(_SEED, request_id, 0) < share


def without_profile_if_requested(query: Query) -> Query:
    """The query without the viewer's profile and history, where the request or the viewer wants that."""
    if query.session.user_id == NOBODY or not (query.request.plain or query.session.plain):
        return query
    return replace(query, session=query.session.without_profile())


def _best(
    chances_N: NDArray[np.float64], scores_N: NDArray[np.float64], n: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Positions of the n candidates that are worth most, and the logarithm of each one's worth in that of the
    last of these. Worth is the chance that an item is taken, times the score of an engagement with it."""
    worth_N = chances_N + np.log(np.fmax(scores_N, _LEAST))
    best = np.argsort(-worth_N, kind="stable")[:n]
    return best, worth_N - worth_N[best[-1]]


def _lowered(
    scores_N: NDArray[np.float64], best: NDArray[np.int64], odds_N: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Additions to scores that put all but the best below these, by their odds."""
    least = np.nanmin(scores_N[best])
    below_N: NDArray[np.float64] = least - np.abs(least) * -np.expm1(np.minimum(odds_N, 0.0))
    added_N = below_N - scores_N
    added_N[best] = 0.0
    return added_N


def _has_numbers(predictions_NL: Floats | None) -> TypeGuard[Floats]:
    """Whether a ranker gave numbers for any candidate."""
    return predictions_NL is not None and not np.isnan(predictions_NL).any(1).all()


def _served(item: AnswerItem) -> ServedItem:
    item_id, propensity, sources = item.item_id, item.propensity, list(item.sources)
    return ServedItem(item_id=item_id, propensity=propensity, score=item.score, sources=sources)


def _unchanged(_: Query, candidates: Candidates) -> Candidates:
    return candidates
