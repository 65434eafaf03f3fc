"""Reconstructs a past answer and compares it with its log entry, to the last bit. Pure.

An answer depends on the replica at its stamp, the session, the policy, the time, the request id and the
request; the impression names all of them. With these pieces the same pipeline runs again: there is no second
way to an answer.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np

from experiments.assignment.policy import Policies, Policy
from recsys.config.policy_config import check_plugins
from recsys.events.event_types import Event, FeatureBlock, Impression, ServedItem, Stamp, User
from recsys.events.hashing import Id
from recsys.features.request_features import read_block
from recsys.features.session import Session
from serving.admission.deadline import RecordedDeadline
from serving.pipeline import Pipeline
from serving.query import Query
from serving.request import SESSION, STALE, Answer, Request, with_degraded
from serving.scorers.probabilities import probabilities
from serving.scorers.weighted_sum import weighted_sum
from serving.sessions.session_fold import KeysOf, fold_event

_ARRAYS: Final = ("user_keys", "item_keys", "history", "outcomes", "dense")


@dataclass(frozen=True)
class Difference:
    """A field that differs from the log, by its path: ``items[2].score``."""

    field: str
    logged: Any
    again: Any


def query_of(impression: Impression, session: Session, policy: Policy, explain: bool = False) -> Query:
    """The query that an impression answered, skipping what its deadline skipped. ``explain`` adds predictions
    and reasons, and changes nothing else. Raises ValueError for an impression without its request."""
    inputs = impression.inputs
    if inputs is None:
        raise ValueError(
            f"impression {impression.request_id} doesn't record its request: it is older than this record, "
            "or was made elsewhere; only newer ones can be reconstructed"
        )
    request = Request(
        user_id=impression.user_id, n=inputs.n, surface=impression.surface, context=impression.context,
        exclude_ids=tuple(inputs.exclude_ids),
        candidate_ids=None if inputs.candidate_ids is None else tuple(inputs.candidate_ids),
        by_score=inputs.by_score, plain=inputs.plain, filters=inputs.filters, explain=explain,
    )  # fmt: skip
    deadline = RecordedDeadline(impression.degraded)
    return Query(
        request, session, policy, impression.time_ms, impression.request_id, deadline,
        viewer_known=SESSION not in impression.degraded,
    )  # fmt: skip


def reconstruct_answer(pipeline: Pipeline, query: Query) -> Answer:
    """The answer to a query of ``query_of``, with what the service named in ``degraded``. Raises ValueError
    for a plug-in that isn't installed."""
    check_plugins(query.policy.config, pipeline.replica.config.serve.stages)
    answer = pipeline.recommend(query)
    for stage in (SESSION, STALE):
        if query.deadline.skips(stage):
            answer = with_degraded(answer, stage)
    return answer


def stamp_differences(logged: Stamp | None, again: Stamp) -> list[Difference]:
    """Fields in which the reconstructed state differs from the stamp."""
    return _fields("stamp", logged, again, again.__struct_fields__)


def differences(logged: Impression, again: Impression) -> list[Difference]:
    """Fields of the answer that aren't equal to the last bit."""
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(again), type=Impression)
    names = ["time_ms", "request_id", "user_id", "inputs", "degraded", "teams"]
    if logged.shares or not logged.teams:  # older lists have none
        names.append("shares")
    different = _fields("", logged, again, names)
    if logged.stamp is not None and again.stamp is not None:
        different += stamp_differences(logged.stamp, again.stamp)
    if len(logged.items) != len(again.items):
        different.append(Difference("len(items)", len(logged.items), len(again.items)))
    for rank, (old, new) in enumerate(zip(logged.items, again.items, strict=False)):
        different += _fields(f"items[{rank}]", old, new, ServedItem.__struct_fields__)
    return different + _features(logged.features, again.features)


def _fields(of: str, logged: Any, again: Any, names: Sequence[str]) -> list[Difference]:
    """Compares encoded values: -0.0 isn't 0.0 on the log, nor 7 the text "7"."""
    pairs = [(name, getattr(logged, name, None), getattr(again, name, None)) for name in names]
    return [
        Difference(f"{of}.{name}" if of else name, old, new)
        for name, old, new in pairs
        if _encode(old) != _encode(new)
    ]


def _features(logged: FeatureBlock | None, again: FeatureBlock | None) -> list[Difference]:
    if logged is None or again is None or logged.feature_set != again.feature_set:
        return _fields("features", logged, again, ("feature_set",))
    different = []
    for name in _ARRAYS:
        old, new = getattr(logged, name), getattr(again, name)
        if old != new:
            kind = np.float32 if name in ("outcomes", "dense") else np.int64
            different.append(_first(f"features.{name}", old, new, kind))
    return different


def _first(field: str, logged: bytes, again: bytes, kind: Any) -> Difference:
    if len(logged) != len(again):
        return Difference(f"len({field})", len(logged), len(again))
    old, new = np.frombuffer(logged, kind), np.frombuffer(again, kind)
    bits = np.int32 if kind is np.float32 else np.int64
    at = int(np.flatnonzero(old.view(bits) != new.view(bits))[0])
    return Difference(f"{field}[{at}]", old[at].item(), new[at].item())


def policy_of(revisions: Iterable[Policies], user_id: Id, surface: str, stamp: Stamp) -> Policy:
    """The policy with the stamp's digest, preferably with its arms. ``revisions``: the newest first. Raises
    ValueError where none has the digest."""
    resolved = (policies.resolve(user_id, surface) for policies in revisions)
    matching = [policy for policy in resolved if policy.digest == stamp.policy]
    if not matching:
        raise ValueError(
            f"no known policy has the digest {stamp.policy}: the configuration was another (policy.*, "
            "surfaces), or an experiment's revision is no longer on the topic control, or names a plug-in "
            "that isn't installed"
        )
    return next((policy for policy in matching if policy.arms == stamp.arms), matching[0])


def fold_events(
    session: Session, events: Iterable[tuple[int, Event]], keys_at: Callable[[int], KeysOf]
) -> Session:
    """The session after a user's events, given with their offsets and without repeats. ``keys_at`` gives the
    keys that items had when an event of a time was folded."""
    for offset, event in events:
        if isinstance(event, User) and event.removed:
            session = Session(event.user_id, session.features, session.seen.maxlen or 0)
        else:
            fold_event(session, event, keys_at(event.time_ms))
        session.offset = offset + 1
    return session


def count_reproduced_scores(pipeline: Pipeline, impression: Impression, policy: Policy) -> tuple[int, int]:
    """Number of the list's scores that follow from its logged features and the rows of its version alone, and
    the number of all scores: a weaker check where session or counters are gone."""
    block, replica = impression.features, pipeline.replica
    if block is None or not impression.items:
        return 0, 0
    features = replica.read(read_block(block, replica.features))
    predictions_RL = probabilities(replica.model, replica.rows, [features])
    scores = weighted_sum(replica.features, predictions_RL, policy)
    for name, rival in policy.rivals:  # each item has the score of the arm that picked it
        picked = np.array([team == name for team in impression.teams], np.bool_)
        scores = np.where(picked, weighted_sum(replica.features, predictions_RL, rival), scores)
    logged = [item.score for item in impression.items]
    same = sum(old == float(new) for old, new in zip(logged, scores, strict=True))
    return same, len(logged)


_encode = msgspec.msgpack.Encoder().encode
