"""Answers of one seeded replica to many kinds of requests: what a change of the pipeline must not change.

Predictions come from hashes, not from the model, and floats are rounded to nine digits, so that a digest is
the same on every processor; ``exact`` keeps every bit, for a comparison on one machine.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

import msgspec
import numpy as np

from experiments.assignment.definition import Arm, Experiment
from experiments.assignment.policy import Policies, Policy
from recsys.config.policy_config import PolicyConfig
from recsys.events.event_types import Item
from recsys.events.hashing import key_of, uniforms
from recsys.features.session import Session
from serving.admission.deadline import POPULAR, SHORT, UNRANKED, RecordedDeadline
from serving.replica.replica import Replica
from serving.request import Answer, AnswerItem, Request
from tests.support.serving.replica_harness import config, item, made, policy, popular, viewer

REQUESTS = 4  # with different ids, for each case


@dataclass(frozen=True)
class GoldenCase:
    """One way to ask: ``request_id`` gets a number behind it."""

    name: str
    replica: Replica
    request: Request
    session: Session
    policy: Policy
    degraded: tuple[str, ...] = ()
    from_shards: dict[str, tuple[int, ...]] | None = None  # items by source


def hashed_predictions(model: Any, rows: Any, requests: Any) -> np.ndarray:
    """Probabilities (N, L) that depend on the items' keys and the viewer alone."""
    keys = np.concatenate([request.items_NI[:, 0] for request in requests])
    salt = int(requests[0].user_U[0]) & 0xFFFF
    return uniforms(salt, keys, model.ranker.shape.outputs).astype(np.float32)


def interleaved() -> Policy:
    """A policy whose lists two arms draw in turns."""
    arms = (Arm("control", 0.5), Arm("treatment", 0.5, {"weights.like": 3.0, "diversity": 0.4}))
    duel = Experiment(name="duel", layer="duels", arms=arms, kind="interleaving")
    base = PolicyConfig(temperature=0.2, explore=0.1, fixed={1: "v30"}, not_interested=0.5)
    return Policies(base, [duel]).resolve("u")


def item_keys(*numbers: int) -> np.ndarray:
    return np.array([key_of("item", f"v{n}") for n in numbers], np.int64)


def small_replica(steps: int = 2) -> Replica:
    replica = made(items=120, steps=steps, its_config=config(candidates=80))
    popular(replica, {n: 3 + n % 17 for n in range(0, 90, 2)})
    replica.apply_item(Item(time_ms=1, item_id="v17", removed=True), 121)
    replica.apply_item(item(200, author="a3", tags=["t1", "t2"]), 122)
    replica.popularity._shown[: len(replica.catalogue)] = np.arange(len(replica.catalogue)) * 3
    return replica


def known_viewer(replica: Replica) -> Session:
    session = viewer(replica, liked=(3, 8, 40, 41), seen=tuple(range(50, 70)))
    session.hidden.extend(key_of("item", f"v{n}") for n in (4, 22, 77))
    session.offset = 99
    return session


def cases() -> Iterator[GoldenCase]:
    replica, cold = small_replica(), small_replica(steps=0)
    wide = made(items=400, its_config=config(candidates=300))
    popular(wide, {n: n for n in range(150)})
    session, stranger = known_viewer(replica), Session("u", replica.features)
    plain, given = Request("u", n=10), tuple(f"v{n}" for n in (1, 4, 9, 17, 30, 55, 1, 200, 999))
    rules = (
        {"do": "boost", "field": "author", "value": "a3", "amount": 0.5},
        {"do": "bury", "field": "tags", "value": "t2", "amount": 0.25},
        {"do": "limit", "field": "tags", "value": "t1", "amount": 2},
        {"do": "limit", "field": "author", "value": "a5", "amount": 0},
    )
    ruled = policy(rules=rules, not_interested=1.0, temperature=0.1, per_author=1)
    required = policy(rules=({"do": "require", "field": "tags", "value": "t3", "amount": 1.0},))
    pinned = policy(fixed={0: "v11", 3: "v30", 4: "v4", 6: "v17", 7: "v50", 90: "v2"})
    loose = policy(temperature=2.0, explore=0.3, quota=0.4, diversity=0.5, trust_after=200)
    duel = interleaved()
    excluded = replace(plain, exclude_ids=("v1", 2, "v90", "nobody"))
    yield GoldenCase("plain", replica, plain, session, policy())
    yield GoldenCase("stranger", replica, replace(plain, n=25), stranger, loose)
    yield GoldenCase("rules", replica, excluded, session, ruled)
    yield GoldenCase("required", replica, replace(plain, n=40), session, required)
    yield GoldenCase("pinned", replica, replace(excluded, explain=True), session, pinned)
    yield GoldenCase("given", replica, replace(plain, candidate_ids=given), session, pinned)
    yield GoldenCase("nothing given", replica, replace(plain, candidate_ids=()), session, loose)
    by_score = replace(plain, by_score=True, explain=True, context={"surface": "home"})
    yield GoldenCase("by score", replica, by_score, session, loose)
    yield GoldenCase("loose", replica, replace(plain, n=30), session, loose)
    yield GoldenCase("duel", replica, replace(plain, explain=True), session, duel)
    yield GoldenCase("long duel", replica, replace(plain, n=60), stranger, duel)
    yield GoldenCase("duel given", replica, replace(plain, candidate_ids=given), session, duel)
    yield GoldenCase("cold", cold, plain, known_viewer(cold), loose)
    yield GoldenCase("cold duel", cold, plain, known_viewer(cold), duel)
    from_shards = {"vector": (5, 9, 31, 7), "similar": (9, 33)}
    yield GoldenCase("shards", replica, plain, session, policy(), (), from_shards)
    for missed in ((SHORT,), (POPULAR, SHORT), (POPULAR, SHORT, UNRANKED), (UNRANKED,)):
        yield GoldenCase(str(missed), wide, plain, viewer(wide, liked=(3, 8)), ruled, missed)
        yield GoldenCase(f"duel {missed}", wide, plain, viewer(wide, liked=(3, 8)), duel, missed)


Ask = Callable[[GoldenCase, str, RecordedDeadline], Answer]


def answers(ask: Ask) -> Iterator[tuple[str, Answer]]:
    for case in cases():
        for n in range(REQUESTS):
            yield f"{case.name} {n}", ask(case, f"{case.name}-{n}", RecordedDeadline(case.degraded))


def exact(answer: Answer) -> bytes:
    """Every bit of an answer."""
    items = [_item_values(shown) for shown in answer.items]
    rest = [items, answer.removed, answer.offered, answer.degraded, answer.impression]
    return msgspec.msgpack.encode(rest)


def rounded(answer: Answer) -> bytes:
    """An answer without what the last bits of a logarithm decide."""
    features = answer.impression.features
    keys = b"" if features is None else features.user_keys + features.item_keys + features.history
    rest = msgspec.to_builtins(msgspec.structs.replace(answer.impression, features=None))
    items = [_item_values(shown) for shown in answer.items]
    figures = [items, answer.removed, answer.offered, answer.degraded, rest]
    return msgspec.json.encode(_rounded(figures)) + keys


def _item_values(shown: AnswerItem) -> dict[str, Any]:
    """All fields but the reasons, which describe an answer and change nothing in it."""
    names = [name for name in AnswerItem.__struct_fields__ if name != "reasons"]
    return {name: getattr(shown, name) for name in names}


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _rounded(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(entry) for entry in value]
    return float(f"{value:.9g}") if isinstance(value, float) else value


def digest_of_answers(ask: Ask, encode: Callable[[Answer], bytes] = rounded) -> str:
    digest = sha256()
    for name, answer in answers(ask):
        digest.update(name.encode() + encode(answer))
    return digest.hexdigest()[:16]
