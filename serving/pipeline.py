"""From a request to an answer, by named stages; one version, one stamp.

    filters         what may not come at all: gone, excluded, hidden, seen (serving/retrieval/filters.py)
    sources         candidates, each source with its share (serving/retrieval/retrieval.py)
    rank            what the viewer would do with each, as one score
    not_interested, rules
                    what changes scores or takes candidates out (serving/ranking/stages.py)
    diversify, draw a list by score, caps, exploration and quota, with its propensities (serving/ranking/selection.py)

Everything happens in one call on one thread: no stage waits, no stage talks to another process. Where shards
have the item vectors, they were asked before, by ``plan`` (serving/retrieval/retrieval_plan.py). A stage that
fails is skipped and named in ``degraded``; an answer comes whatever happens to the model. What a stage took
out is counted under its name in ``removed``.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Final, TypeGuard

import numpy as np
from numpy.typing import NDArray

from experiments.assignment.policy import Policy
from recsys.events.event_types import Asked, Impression, Served, Stamp
from recsys.events.hashing import key_of
from recsys.features.feature_builder import FeatureBuilder
from recsys.features.feature_set import RequestFeatures
from recsys.features.session import Session
from recsys.model.ranker import watch_seconds
from serving.admission.deadline import POPULAR, SHORT, NO_DEADLINE, UNRANKED, Deadline, shorten_candidates
from serving.ranking.explanation import reasons
from serving.ranking.pinned_items import fixed, given
from serving.ranking.scoring import popular_scores, probabilities
from serving.ranking.selection import BY_SCORE, Ballot, Chance, Drawn, draw_from
from serving.ranking.stages import caps_of, staged, trust_of
from serving.ranking.team_draft import draft
from serving.replica.replica import Replica
from serving.request import Answer, AnswerItem, Ranked, Request
from serving.retrieval.filters import wanted_items
from serving.retrieval.retrieval import Retrieval
from serving.retrieval.retrieval_plan import SIDE, Near, Plan
from serving.retrieval.retrieval_shard import Version
from serving.tracing.request_trace import FILTER, RANK, RETRIEVE, SELECT, Mark, unmarked

_log = logging.getLogger(__name__)
Floats = NDArray[np.float32]
_NOBODY: Final = np.zeros(0, np.int64)  # no candidates: a viewer's features alone


class Pipeline:
    """Answers requests from one replica. Not thread-safe: requests and applies take turns."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.builder = FeatureBuilder(replica.features)
        self.retrieval = Retrieval(replica)

    def recommend(
        self,
        request: Request,
        session: Session,
        policy: Policy,
        now_ms: int,
        request_id: str,
        deadline: Deadline = NO_DEADLINE,
        near: Near | None = None,
        mark: Mark = unmarked,
    ) -> Answer:
        """The list, and the impression that says how it was made. The same arguments and the same version
        give the same answer: for a past one, ``deadline`` is ``RecordedDeadline`` with its ``degraded``. ``near``:
        what shards of retrieval found; it counts only where it is of the version that answers. ``mark`` is
        told where each stage ends."""
        degraded: list[str] = []
        if near is not None and near.version != self.version:
            near = None
        user = self._features(request, session, _NOBODY, now_ms)
        found, removed = self._candidates(
            request, session, policy, user, request_id, deadline, degraded, near, mark
        )
        mark(RETRIEVE)
        pinned = fixed(self.replica.catalogue, request, session, policy.config, found)
        found |= {index: ["fixed"] for index in pinned.values()}
        features = self._features(request, session, np.array(list(found), np.int64), now_ms, user)
        ranked = self._rank(policy, found, features, deadline, degraded)
        mark(RANK)
        drawn, ranked, scores_R, taken_out = self._select(
            request, session, policy, ranked, pinned, request_id
        )
        mark(SELECT)
        removed |= taken_out | drawn.closed
        stamp = self._stamp(
            session, policy, self.replica.index.name if near is None else near.index
        )
        items = [
            self._item(request, session, ranked, rank, drawn, scores_R[rank])
            for rank in range(len(drawn.positions))
        ]
        impression = Impression(
            time_ms=now_ms,
            request_id=request_id,
            user_id=request.user_id,
            items=[_served(item) for item in items],
            context=request.context,
            surface=request.surface,
            stamp=stamp,
            features=ranked.features.rows(drawn.positions).block(),
            predicted=_predicted(ranked, drawn.positions),
            degraded=degraded,
            asked=self._asked(request, session),
            teams=list(drawn.teams),
            shares=list(drawn.shares),
        )
        return Answer(
            request_id, tuple(items), impression, stamp, tuple(degraded), removed, drawn.offered,
            ranked,
        )  # fmt: skip

    @property
    def version(self) -> Version:
        """What vectors depend on, as it is now."""
        its = self.replica
        return Version(its.line, its.epoch, its.step, its.catalogue_offset)

    def plan(
        self,
        request: Request,
        session: Session,
        policy: Policy,
        now_ms: int,
        deadline: Deadline = NO_DEADLINE,
        near: Near | None = None,
    ) -> Plan | None:
        """What shards of retrieval are to be asked before ``recommend``, with the same arguments; None where
        there are none, where nothing is to be asked of them, or where ``near`` is of this version."""
        if self.replica.indexed or request.candidate_ids is not None or deadline.skips(POPULAR):
            return None
        if near is not None and near.version == self.version:
            return None
        catalogue = self.replica.catalogue
        user = self._features(request, session, _NOBODY, now_ms)
        queries = self.retrieval.queries(session, user, self._shares(policy))
        if not queries:
            return None
        _, _, taken = wanted_items(catalogue, session, request.exclude_ids, request.n)
        return Plan(self.version, queries, catalogue.keys[taken, 0].copy())

    def _candidates(
        self,
        request: Request,
        session: Session,
        policy: Policy,
        user: RequestFeatures,
        request_id: str,
        deadline: Deadline,
        degraded: list[str],
        near: Near | None,
        mark: Mark,
    ) -> tuple[dict[int, list[str]], dict[str, int]]:
        catalogue = self.replica.catalogue
        if request.candidate_ids is not None:
            return given(catalogue, request)
        wanted, removed, _ = wanted_items(catalogue, session, request.exclude_ids, request.n)
        mark(FILTER)
        salt = key_of("request", request_id) & 0xFFFFFFFF
        limit = self.replica.config.serve.candidates
        shares = self._shares(policy)
        if deadline.skips(POPULAR):
            degraded.append(POPULAR)
            shares = {"popular": limit}
        found = self.retrieval.collect(
            session, user, wanted, shares, limit, salt, policy.config.trust_after, near
        )
        if found.failed:
            degraded.append("retrieval")
        if len(found.sources) < request.n:
            for index in wanted.first(request.n * 5).tolist():
                found.sources.setdefault(index, ["any"])
        few = self.replica.config.serve.short_candidates
        if len(found.sources) > few and deadline.skips(SHORT):
            degraded.append(SHORT)
            return shorten_candidates(found.sources, few), removed
        return found.sources, removed

    def _shares(self, policy: Policy) -> dict[str, int]:
        """What each source may find: nobody's side has been learned before the first step."""
        shares = dict(policy.config.sources)
        if self.replica.step == 0:
            shares.pop(SIDE, None)
        return shares

    def _rank(
        self,
        policy: Policy,
        found: dict[int, list[str]],
        features: RequestFeatures,
        deadline: Deadline,
        degraded: list[str],
    ) -> Ranked:
        indices, ranks = list(found), False
        predictions: Floats | None = None
        if self.replica.step == 0:
            degraded.append("model")
        elif deadline.skips(UNRANKED):
            degraded.append(UNRANKED)
        else:
            try:
                predictions = probabilities(self.replica.model, self.replica.rows, [features])
                if not _speaks(predictions) and indices:
                    raise FloatingPointError("no candidate has a prediction that is a number")
                ranks = True
            except Exception:  # no ranker: the order of retrieval
                _log.exception("ranking failed")
                degraded.append("rank")
        # Predictions that are no numbers go into the impression all the same: it is by them that a line is
        # known to be broken, and not just late.
        if predictions is None or not ranks:
            scores = popular_scores(self.replica.popularity.values[indices])
        else:
            scores = self.score(predictions, policy)
        everywhere = np.ones(len(indices), np.bool_)
        return Ranked(indices, list(found.values()), features, predictions, scores, everywhere)

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

    def under(
        self, policy: Policy, ranked: Ranked, session: Session
    ) -> tuple[Ranked, dict[str, int]]:
        """The candidates as any policy scores and stages them, by the predictions that are there."""
        if _speaks(ranked.predictions_NL):
            ranked = replace(ranked, scores_N=self.score(ranked.predictions_NL, policy))
        fresh = replace(ranked, added={}, open_N=np.ones(len(ranked.indices), np.bool_))
        return staged(self.replica, session, policy.config, fresh)

    def _select(
        self,
        request: Request,
        session: Session,
        policy: Policy,
        ranked: Ranked,
        pinned: Mapping[int, int],
        request_id: str,
    ) -> tuple[Drawn, Ranked, NDArray[np.float64], dict[str, int]]:
        """The list, the candidates as the policy (or control) sees them, scores by rank, what was removed."""
        if not policy.rivals:
            its, taken_out = staged(self.replica, session, policy.config, ranked)
            ballot = self.ballot(request, policy, its, pinned)
            drawn = draw_from(ballot, request.n, request_id=request_id)
            return drawn, its, its.scores_N[drawn.positions], taken_out
        seen = [self.under(rival, ranked, session) for _, rival in policy.rivals]
        one, other = (
            self.ballot(request, rival, its, pinned)
            for (_, rival), (its, _) in zip(policy.rivals, seen, strict=True)
        )
        names = policy.rivals[0][0], policy.rivals[1][0]
        drawn = draft((one, other), request.n, names, request_id=request_id)
        (its, taken_out), (theirs, _) = seen
        others_R = np.array(drawn.drawers, np.bool_)
        scores_R = np.where(
            others_R, theirs.scores_N[drawn.positions], its.scores_N[drawn.positions]
        )
        return drawn, its, scores_R, taken_out

    def ballot(
        self, request: Request, policy: Policy, ranked: Ranked, pinned: Mapping[int, int]
    ) -> Ballot:
        """What a list is drawn by under a policy, of candidates as it sees them (``under``)."""
        config, replica = policy.config, self.replica
        at = np.array(ranked.indices, np.int64)
        chance = Chance(config.temperature, config.explore, config.quota, config.diversity)
        if request.by_score:
            chance = BY_SCORE
        return Ballot(
            ranked.final_N,
            chance,
            caps_of(replica.features, config, ranked, request.candidate_ids is not None),
            trust_of(replica.popularity.shown[at], config.trust_after),
            replica.vectors_of(at) if chance.diversity else None,
            ranked.open_N,
            {rank: ranked.indices.index(index) for rank, index in pinned.items()},
        )

    def _stamp(self, session: Session, policy: Policy, index: str) -> Stamp:
        replica = self.replica
        return Stamp(
            line=replica.line,
            epoch=replica.epoch,
            step=replica.step,
            catalogue_offset=replica.catalogue_offset,
            item_state_offset=replica.item_state_offset,
            session_offset=session.offset,
            policy=policy.digest,
            arms=dict(policy.arms),
            index=index,
        )

    def _asked(self, request: Request, session: Session) -> Asked:
        return Asked(
            n=request.n,
            exclude_ids=list(request.exclude_ids),
            candidate_ids=None if request.candidate_ids is None else list(request.candidate_ids),
            candidates=self.replica.config.serve.candidates,
            session=session.digest,
            item_state_from=self.replica.item_state_from,
            counted=self.replica.counted,
            by_score=request.by_score,
        )

    def _features(
        self,
        request: Request,
        session: Session,
        indices: NDArray[np.int64],
        now_ms: int,
        known: RequestFeatures | None = None,
    ) -> RequestFeatures:
        return self.builder.build(
            session,
            request.surface,
            request.context,
            indices,
            self.replica.catalogue,
            self.replica.counters,
            now_ms,
            known,
        )

    def _item(
        self,
        request: Request,
        session: Session,
        ranked: Ranked,
        rank: int,
        drawn: Drawn,
        its_score: float,
    ) -> AnswerItem:
        position, score = int(drawn.positions[rank]), float(its_score)
        index = ranked.indices[position]
        sources = ranked.sources[position] + (["quota"] if drawn.trial_R[rank] else [])
        predictions, why = None, None
        if request.explain:
            why = reasons(session, self.replica.catalogue, index)
            said_NL = ranked.predictions_NL
            if (
                said_NL is not None
                and math.isfinite(score)
                and np.isfinite(said_NL[position]).all()
            ):
                predictions = self._named(said_NL[position])
        return AnswerItem(
            item_id=self.replica.catalogue.ids[index],
            rank=rank,
            score=score if math.isfinite(score) else None,
            propensity=float(drawn.propensities[rank]),
            sources=tuple(sources),
            fields=self.replica.catalogue.fields[index],
            predictions=predictions,
            reasons=why,
        )

    def _named(self, predictions_L: Floats) -> dict[str, float]:
        labels = self.replica.features.schema.labels
        named = {label: float(p) for label, p in zip(labels, predictions_L, strict=False)}
        return named | {"watch_s": float(watch_seconds(predictions_L[len(labels)]))}


def _speaks(predictions_NL: Floats | None) -> TypeGuard[Floats]:
    """Whether a ranker gave numbers for any candidate."""
    return predictions_NL is not None and not np.isnan(predictions_NL).any(1).all()


def _predicted(ranked: Ranked, positions: NDArray[np.int64]) -> bytes:
    """What the ranker said of the items that were drawn."""
    if ranked.predictions_NL is None:
        return b""
    return np.ascontiguousarray(ranked.predictions_NL[positions], np.float32).tobytes()


def _served(item: AnswerItem) -> Served:
    return Served(
        item_id=item.item_id,
        propensity=item.propensity,
        score=item.score,
        sources=list(item.sources),
    )
