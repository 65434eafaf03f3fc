"""An answer of the past, made again and compared with what was logged of it, to the last bit. Pure.

What an answer depends on is the replica at its stamp, the session, the policy, the time, the request id and
what was asked; the impression names all of them. Whoever can put them together again calls the pipeline as it
was called then: there is no second way to an answer.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np

from experiments.assignment.policy import Policies, Policy
from recsys.events.event_types import Event, FeatureBlock, Impression, ServedItem, Stamp, User
from recsys.events.hashing import Id
from recsys.features.feature_set import read_block
from recsys.features.session import Session
from serving.admission.deadline import RecordedDeadline
from serving.pipeline import Pipeline
from serving.ranking.scoring import probabilities
from serving.replica.replica import Replica
from serving.request import SESSION, STALE, Answer, Request, without
from serving.sessions.session_fold import KeysOf, fold_event

_ARRAYS: Final = ("user_keys", "item_keys", "history", "outcomes", "dense")


@dataclass(frozen=True)
class Difference:
    """A field that isn't what was logged, by its path: ``items[2].score``."""

    field: str
    logged: Any
    again: Any


def request_of(impression: Impression) -> Request:
    """What was asked. Raises ValueError for an impression that doesn't say it."""
    asked = impression.asked
    if asked is None:
        raise ValueError(
            f"impression {impression.request_id} doesn't say what was asked: it was made before impressions "
            "did, or elsewhere; only newer ones can be made again"
        )
    return Request(
        user_id=impression.user_id,
        n=asked.n,
        surface=impression.surface,
        context=impression.context,
        exclude_ids=tuple(asked.exclude_ids),
        candidate_ids=None if asked.candidate_ids is None else tuple(asked.candidate_ids),
        by_score=asked.by_score,
        explain=True,  # it adds predictions and reasons, and changes nothing else
    )


def answer_again(
    pipeline: Pipeline, impression: Impression, session: Session, policy: Policy
) -> Answer:
    """The answer, from the same time and request id, without what too little time was left for. Raises
    ValueError as ``request_of`` does."""
    request, its = request_of(impression), impression
    as_served = RecordedDeadline(its.degraded)
    answer = pipeline.recommend(request, session, policy, its.time_ms, its.request_id, as_served)
    for stage in (SESSION, STALE):
        if stage in its.degraded:
            answer = without(answer, stage)
    return answer


def unlike(logged: Stamp | None, again: Stamp) -> list[Difference]:
    """Where the state that was made again isn't that of the stamp."""
    return _fields("stamp", logged, again, again.__struct_fields__)


def differences(logged: Impression, again: Impression) -> list[Difference]:
    """Every field of the answer that isn't equal to the last bit; empty where all are."""
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(again), type=Impression)
    names = ["time_ms", "request_id", "user_id", "asked", "degraded", "teams"]
    if logged.shares or not logged.teams:  # lists of before shares were logged have none
        names.append("shares")
    found = _fields("", logged, again, names)
    if logged.stamp is not None and again.stamp is not None:
        found += unlike(logged.stamp, again.stamp)
    if len(logged.items) != len(again.items):
        found.append(Difference("len(items)", len(logged.items), len(again.items)))
    for rank, (its, our) in enumerate(zip(logged.items, again.items, strict=False)):
        found += _fields(f"items[{rank}]", its, our, ServedItem.__struct_fields__)
    return found + _features(logged.features, again.features)


def _fields(of: str, logged: Any, again: Any, names: Sequence[str]) -> list[Difference]:
    """By what stands on the log: -0.0 isn't 0.0 there, nor 7 the text "7"."""
    pairs = [(name, getattr(logged, name, None), getattr(again, name, None)) for name in names]
    return [
        Difference(f"{of}.{name}" if of else name, its, our)
        for name, its, our in pairs
        if _encode(its) != _encode(our)
    ]


def _features(logged: FeatureBlock | None, again: FeatureBlock | None) -> list[Difference]:
    if logged is None or again is None or logged.feature_set != again.feature_set:
        return _fields("features", logged, again, ("feature_set",))
    found = []
    for name in _ARRAYS:
        its, our = getattr(logged, name), getattr(again, name)
        if its != our:
            kind = np.float32 if name in ("outcomes", "dense") else np.int64
            found.append(_first(f"features.{name}", its, our, kind))
    return found


def _first(field: str, logged: bytes, again: bytes, kind: Any) -> Difference:
    """The first number of an array that isn't the same."""
    if len(logged) != len(again):
        return Difference(f"len({field})", len(logged), len(again))
    its, our = np.frombuffer(logged, kind), np.frombuffer(again, kind)
    bits = np.int32 if kind is np.float32 else np.int64
    at = int(np.flatnonzero(its.view(bits) != our.view(bits))[0])
    return Difference(f"{field}[{at}]", its[at].item(), our[at].item())


def policy_then(known: Iterable[Policies], user_id: Id, stamp: Stamp) -> Policy:
    """The policy of the stamp's digest among ``known``, the newest first: with its arms where there is one.
    Raises ValueError where none has the digest."""
    same = [p for p in (its.resolve(user_id) for its in known) if p.digest == stamp.policy]
    if not same:
        raise ValueError(
            f"no known policy has the digest {stamp.policy}: the configuration was another (policy.*), or an "
            "experiment's revision isn't on the topic control any more"
        )
    return next((policy for policy in same if policy.arms == stamp.arms), same[0])


def fold_again(
    session: Session, events: Iterable[tuple[int, Event]], keys_at: Callable[[int], KeysOf]
) -> Session:
    """The session after a user's events, given with their offsets, repeats left out. ``keys_at`` gives the
    keys that items had when an event of a time was folded."""
    for offset, event in events:
        if isinstance(event, User) and event.removed:
            session = Session(event.user_id, session.features, session.seen.maxlen or 1)
        else:
            fold_event(session, event, keys_at(event.time_ms))
        session.offset = offset + 1
    return session


def same_scores(
    replica: Replica, pipeline: Pipeline, impression: Impression, policy: Policy
) -> tuple[int, int]:
    """How many of the list's scores follow from its logged features and the rows of its version alone, and
    how many there are: what can still be said where session or counters of then are gone."""
    block = impression.features
    if block is None or not impression.items:
        return 0, 0
    features = read_block(block, replica.features)
    said_RL = probabilities(replica.model, replica.rows, [features])
    scores = pipeline.score(said_RL, policy)
    for name, rival in policy.rivals:  # each item has the score of the arm that picked it
        picked = np.array([team == name for team in impression.teams], np.bool_)
        scores = np.where(picked, pipeline.score(said_RL, rival), scores)
    logged = [item.score for item in impression.items]
    same = sum(its == float(our) for its, our in zip(logged, scores, strict=True))
    return same, len(logged)


_encode = msgspec.msgpack.Encoder().encode
