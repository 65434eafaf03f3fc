"""Assembles the answer to a query from its drawn list, and the impression that records how it was made."""

import math
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from recsys.config.policy_config import MAX_LIST_LENGTH
from recsys.events.event_types import Choice, Impression, RequestInputs, ServedItem, Stamp
from recsys.events.hashing import Id
from recsys.features.counters import CounterTable
from recsys.model.ranker import watch_seconds
from serving.answers.explanation import explain
from serving.filters.filter import CLOSED
from serving.query import Query
from serving.query_features import QueryFeatures
from serving.replica.replica import Replica
from serving.request import Answer, AnswerItem, Candidates, Slate
from serving.scorers.probabilities import Floats, has_numbers
from serving.scorers.ranker import predict
from serving.scorers.weighted_sum import weighted_sum


class AnswerAssembly:
    """Makes answers of one replica."""

    def __init__(self, replica: Replica, features: QueryFeatures) -> None:
        self._replica, self._features = replica, features

    def assemble(self, query: Query, candidates: Candidates, choice: Choice | msgspec.UnsetType) -> Answer:
        """The answer with a drawn list. ``choice``: what an engagement with an item of it chose from."""
        slate, request = candidates.slate, query.request
        assert slate is not None, "draw first"
        positions_R, predictions_NL = slate.positions, candidates.predictions_NL
        stamp, predicted = self._stamp(query), b""
        if predictions_NL is not None:
            predicted = np.ascontiguousarray(predictions_NL[positions_R], np.float32).tobytes()
        # A longer list isn't logged.
        listed = self._features.listed(candidates.features, positions_R[:MAX_LIST_LENGTH])
        items = self._items(query, candidates, slate)
        if request.explain and items:
            ranked = has_numbers(predictions_NL)
            reasons = self._explain(query, candidates.indices_N[positions_R], ranked)
            pairs = zip(items, reasons, strict=True)
            items = tuple(msgspec.structs.replace(item, reasons=why) for item, why in pairs)
        impression = Impression(
            time_ms=query.now_ms, request_id=query.request_id, user_id=request.user_id,
            items=[_served(item) for item in items], context=request.context, surface=request.surface,
            stamp=stamp, features=self._features.builder.as_shown(listed).block(), predicted=predicted,
            degraded=list(candidates.degraded), inputs=self._inputs(query), teams=list(slate.teams),
            shares=list(slate.shares), choice=choice,
        )  # fmt: skip
        return Answer(
            query.request_id, items, impression, stamp, candidates.degraded, candidates.removed,
            slate.offered, self._left_out(query, candidates, items), candidates,
        )  # fmt: skip

    def _left_out(self, query: Query, candidates: Candidates, items: tuple[AnswerItem, ...]) -> dict[Id, str]:
        """Candidates of the caller that the list had room for, with the reason why it lacks them."""
        left_out = dict(candidates.left_out)
        if query.request.candidate_ids is not None and len(items) < query.request.n:
            ids, listed = self._replica.catalogue.ids, {item.item_id for item in items}
            ranked = (ids[index] for index in candidates.indices_N.tolist())
            left_out |= {item_id: CLOSED for item_id in ranked if item_id not in listed}
        return left_out

    def _explain(
        self, query: Query, indices_R: NDArray[np.int64], ranked: bool
    ) -> list[tuple[dict[str, Any], ...]]:
        """Reasons for each item. ``ranked``: by predictions; without them no reason has an effect."""
        replica = self._replica

        def score(query: Query, counters: CounterTable) -> NDArray[np.float64]:
            if not ranked:
                return np.zeros(len(indices_R))
            features = self._features.of(query, indices_R, counters=counters)
            predictions = predict(replica, self._features.listed(features, np.arange(len(indices_R))))
            return weighted_sum(replica.features, predictions, query.policy)

        return explain(score, query, replica.catalogue, replica.counters, indices_R.tolist())

    def _stamp(self, query: Query) -> Stamp:
        replica, results = self._replica, query.shard_results
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
        request, replica = query.request, self._replica
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
        catalogue, items = self._replica.catalogue, list[AnswerItem]()
        predictions_NL = candidates.predictions_NL if query.request.explain else None
        positions_R, indices_R = slate.positions, candidates.indices_N[slate.positions]
        columns = positions_R, indices_R, candidates.slate_scores_R, slate.propensities, slate.trial_R
        rows = zip(*(column.tolist() for column in columns), strict=True)
        for rank, (position, index, score, propensity, on_trial) in enumerate(rows):
            is_number = math.isfinite(score)
            predictions = None
            if predictions_NL is not None and is_number:
                predictions = self._named(predictions_NL[position])
            item = AnswerItem(
                item_id=catalogue.ids[index],
                rank=rank,
                score=score if is_number else None,
                propensity=propensity,
                sources=(*candidates.sources_of(position), *(("quota",) if on_trial else ())),
                fields=catalogue.fields[index],
                predictions=predictions,
            )
            items.append(item)
        return tuple(items)

    def _named(self, predictions_L: Floats) -> dict[str, float] | None:
        """Predictions by label, and the watch time in seconds; None where one is not a number."""
        if not np.isfinite(predictions_L).all():
            return None
        labels = self._replica.features.schema.labels
        named = {label: float(p) for label, p in zip(labels, predictions_L, strict=False)}
        return named | {"watch_s": float(watch_seconds(predictions_L[len(labels)]))}


def _served(item: AnswerItem) -> ServedItem:
    item_id, propensity, sources = item.item_id, item.propensity, list(item.sources)
    return ServedItem(item_id=item_id, propensity=propensity, score=item.score, sources=sources)
