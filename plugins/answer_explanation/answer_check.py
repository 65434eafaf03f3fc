"""Recomputes past answers from a log, its snapshots and its archive, and compares them bit for bit.

The pipeline of serving recomputes the answer from the replica state, session and policy that the impression
names. When that state is gone, the check still verifies that the scores follow from the logged features and
the rows of that version.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pyarrow.compute as pc

from experiments.assignment.policy import Policies, Policy
from plugins.answer_explanation.reconstructed_answer import (
    Difference,
    count_reproduced_scores,
    differences,
    policy_of,
    query_of,
    reconstruct_answer,
    stamp_differences,
)
from plugins.answer_explanation.reconstructed_replica import NotReconstructible, ReconstructedReplica
from plugins.answer_explanation.reconstructed_session import (
    ReconstructedSessions,
    find_impression,
    impression_of,
    known_policies,
)
from recsys.app.logged_sets import taken_up
from recsys.config.system_config import Config
from recsys.events.event_types import Impression
from recsys.events.hashing import Id
from recsys.events.records import CLICK_LIST, EVENTS
from recsys.features.catalogue import Catalogue
from recsys.features.feature_set import FeatureSet
from recsys.features.request_features import UnknownFeatureSet
from recsys.features.session import Session
from recsys.log.protocol import Log, Record
from serving.pipeline import Pipeline
from serving.query import Query
from serving.request import Answer
from training.archive.writer import archived_rows

EQUAL: Final = "equal"
DIFFERENT: Final = "different"
GONE: Final = "can't"
Place = tuple[int, int]  # partition and offset on ``events``


@dataclass
class AnswerCheck:
    """Result of checking one answer. ``why`` says what is missing when it can't be recomputed."""

    request_id: str
    verdict: str = GONE
    why: str = ""
    impression: Impression | None = None
    place: Place | None = None  # None: archived
    differences: list[Difference] = field(default_factory=list)
    query: Query | None = None
    answer: Answer | None = None
    session: Session | None = None
    policy: Policy | None = None
    scores: tuple[int, int] | None = None  # (reproduced from logged features and rows, total)


class AnswerChecker:
    """Checks answers of one log; fastest in the order in which they were given. ``features``: the set of the
    state folder's file; answers of sets taken up since are checked with theirs.

    Policies are read once: for a log that still grows, use a new checker.
    """

    def __init__(self, log: Log, config: Config, features: FeatureSet) -> None:
        self._log, self._config = log, config
        self._archive = Path(config.state) / "archive"
        self._first, self._labels = features, features.schema.labels
        self._by_set: dict[str, tuple[ReconstructedReplica, ReconstructedSessions]] = {}
        self._replica, self._sessions = self._state_of(features.digest)
        self._policies: list[Policies] | None = None

    @property
    def catalogue(self) -> Catalogue:
        """Catalogue as of the answer checked last."""
        return self._replica.replica.catalogue

    @property
    def pipeline(self) -> Pipeline:
        """Pipeline of the answer checked last, if that answer could be recomputed."""
        return self._replica.pipeline

    def check(self, impression: Impression, place: Place) -> AnswerCheck:
        """``explain`` for an impression that is already read, without ``scores``."""
        check = AnswerCheck(impression.request_id, impression=impression, place=place)
        try:
            self._recompute(check, impression)
        except (NotReconstructible, ValueError) as error:
            check.why = str(error)
        return check

    def explain(self, request_id: str, user_id: Id | None = None) -> AnswerCheck:
        """Finds an answer on the log or in the archive, and checks it."""
        check = AnswerCheck(request_id)
        try:
            check.place, check.impression = self._find(request_id, user_id)
            self._recompute(check, check.impression, explain=True)
        except (NotReconstructible, ValueError) as error:
            check.why = str(error)
            self._check_scores(check)
        return check

    def _find(self, request_id: str, user_id: Id | None) -> tuple[Place | None, Impression]:
        logged = find_impression(self._log, request_id, user_id)
        if logged is not None:
            return logged[:2], logged[2]
        archived = self._archived(request_id)
        if archived is not None:
            return None, archived
        user = "any user" if user_id is None else f"user {user_id}"
        raise NotReconstructible(
            f"no impression of request {request_id} of {user} is on {EVENTS} or in {self._archive}: the id "
            "is wrong, retention has dropped it before it was archived, or its user was forgotten"
        )

    def _state_of(self, digest: str) -> tuple[ReconstructedReplica, ReconstructedSessions]:
        """Reconstruction with a logged feature set."""
        if digest not in self._by_set:
            log, config, first = self._log, self._config, self._first
            features = logged_set(log, first, digest)
            self._by_set[digest] = (
                ReconstructedReplica(log, config, features, first),
                ReconstructedSessions(log, config, features, self._archived_records),
            )
        return self._by_set[digest]

    def _recompute(self, check: AnswerCheck, impression: Impression, explain: bool = False) -> None:
        stamp, inputs = impression.stamp, impression.inputs
        if stamp is None or inputs is None:
            why = "the impression doesn't hold its request: it is older than that field"
            raise NotReconstructible(why)
        if impression.request_id.startswith(CLICK_LIST):
            raise NotReconstructible("the list was made of a click to be learned, and is no answer")
        if inputs.safety != self._config.safety.digest:
            raise NotReconstructible(
                f"the answer was made with other safety rules (digest {inputs.safety or 'of none'!r}): set "
                "safety.rules as they were"
            )
        if impression.features is not None:
            self._replica, self._sessions = self._state_of(impression.features.feature_set)
        if self._policies is None:
            self._policies = list(known_policies(self._log, self._config, self._labels))
        check.policy = policy_of(self._policies, impression.user_id, impression.surface, stamp)
        check.session = self._sessions.of(impression)
        pipeline = self._replica.at(stamp, inputs)
        check.query = query_of(impression, check.session, check.policy, explain)
        check.answer = answer = reconstruct_answer(pipeline, check.query)
        changed = stamp_differences(stamp, answer.stamp)
        if changed:
            changes = ", ".join(f"{d.field} was {d.logged!r} and is {d.again!r}" for d in changed)
            raise NotReconstructible(f"the state of the stamp can't be reconstructed: {changes}")
        skipped = set(impression.degraded) - set(answer.degraded)
        if skipped:
            raise NotReconstructible(
                f"the answer skipped {', '.join(sorted(skipped))} because of a failure, which isn't "
                "on any log"
            )
        check.differences = differences(impression, answer.impression)
        check.verdict = DIFFERENT if check.differences else EQUAL

    def _check_scores(self, check: AnswerCheck) -> None:
        impression = check.impression
        if impression is None or impression.stamp is None or check.policy is None:
            return
        try:
            self._replica.weights_at(impression.stamp)
            check.scores = count_reproduced_scores(self.pipeline, impression, check.policy)
        except (NotReconstructible, ValueError) as error:
            check.why += f"; {error}"

    def _archived(self, request_id: str) -> Impression | None:
        is_wanted = (pc.field("request_id") == request_id) & (pc.field("type") == "impression")
        rows = self._archived_events(["value"], is_wanted)
        impressions = (impression_of(value, request_id) for (value,) in rows)
        return next((impression for impression in impressions if impression is not None), None)

    def _archived_records(self, partition: int, key: bytes, before: int) -> Iterable[Record]:
        is_wanted = (pc.field("partition") == partition) & (pc.field("key") == key)
        is_wanted &= pc.field("offset") < before
        rows = self._archived_events(["offset", "key", "value"], is_wanted) if before else []
        return [Record(*row) for row in rows]

    def _archived_events(self, columns: list[str], is_wanted: Any) -> Iterable[tuple[Any, ...]]:
        if not self._archive.exists():
            return []
        return archived_rows(self._archive, EVENTS, columns, is_wanted)


def logged_set(log: Log, first: FeatureSet, digest: str) -> FeatureSet:
    """The logged set with a digest. ``first``: that of the state folder's file. Raises UnknownFeatureSet."""
    try:
        return ({first.digest: first} | taken_up(log))[digest]
    except KeyError:
        reason = f"feature set {digest} was never logged here: the block is of another state folder"
        raise UnknownFeatureSet(reason) from None
