"""Makes past answers again from a log, its snapshots and its archive, and says whether they are equal.

The pieces are serving's: an answer is made again by the pipeline that made it, from the replica, session and
policy that its impression names. What can't be made again is said, and then what still can: whether the
scores follow from the features that were logged and the rows of the version.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from experiments.assignment.policy import Policies, Policy
from recsys.config.system_config import Config
from recsys.events.event_types import Impression
from recsys.events.hashing import Id
from recsys.events.records import EVENTS
from recsys.features.catalogue import Catalogue
from recsys.features.feature_set import FeatureSet
from recsys.features.session import Session
from recsys.log.protocol import Log, Record
from serving.pipeline import Pipeline
from serving.reconstruction.reconstructed_answer import (
    Difference,
    answer_again,
    differences,
    policy_then,
    same_scores,
    unlike,
)
from serving.reconstruction.reconstructed_replica import Gone, PastReplica
from serving.reconstruction.reconstructed_session import (
    PastSessions,
    find_impression,
    impression_of,
    known_policies,
)
from serving.request import Answer

EQUAL: Final = "equal"
DIFFERENT: Final = "different"
GONE: Final = "can't"


@dataclass
class Explained:
    """What was found of one answer. ``why`` says what is missing where it can't be made again."""

    request_id: str
    verdict: str = GONE
    why: str = ""
    impression: Impression | None = None
    place: tuple[int, int] | None = None  # partition and offset of ``events``; None: archived
    differences: list[Difference] = field(default_factory=list)
    answer: Answer | None = None
    session: Session | None = None
    policy: Policy | None = None
    scores: tuple[int, int] | None = None  # that follow from logged features and rows, of how many


class Explainer:
    """Explains answers of one log, best in the order in which they were given."""

    def __init__(self, log: Log, config: Config, features: FeatureSet) -> None:
        self._log, self._config = log, config
        self._archive = Path(config.state) / "archive"
        self._labels = features.schema.labels
        self._replica = PastReplica(log, config, features)
        self._sessions = PastSessions(log, config, features, self._older)
        self._known: list[Policies] | None = None

    @property
    def catalogue(self) -> Catalogue:
        """The items as of what was explained last."""
        return self._replica.replica.catalogue

    @property
    def pipeline(self) -> Pipeline:
        """As it was for what was explained last, where that could be made again."""
        return self._replica.pipeline

    def again(self, impression: Impression, place: tuple[int, int]) -> Explained:
        """``explain`` of an impression that was read already. Policies are those that were known at the first
        call: of a log that goes on, ask anew."""
        found = Explained(impression.request_id, impression=impression, place=place)
        if self._known is None:
            self._known = list(known_policies(self._log, self._config, self._labels))
        try:
            self._again(found, impression, self._known)
        except (Gone, ValueError) as error:
            found.why = str(error)
        return found

    def explain(self, request_id: str, user_id: Id | None = None) -> Explained:
        found = Explained(request_id)
        try:
            found.place, found.impression = self._find(request_id, user_id)
            known = known_policies(self._log, self._config, self._labels)
            self._again(found, found.impression, known)
        except (Gone, ValueError) as error:
            found.why = str(error)
            self._what_is_left(found)
        return found

    def _find(
        self, request_id: str, user_id: Id | None
    ) -> tuple[tuple[int, int] | None, Impression]:
        there = find_impression(self._log, request_id, user_id)
        if there is not None:
            return there[:2], there[2]
        archived = self._archived(request_id)
        if archived is not None:
            return None, archived
        whose = "any user" if user_id is None else f"user {user_id}"
        raise Gone(
            f"no impression of request {request_id} of {whose} is on {EVENTS} or in {self._archive}: the id "
            "is another, retention has dropped it and it isn't archived, or its user was forgotten"
        )

    def _again(self, found: Explained, impression: Impression, known: Iterable[Policies]) -> None:
        stamp, asked = impression.stamp, impression.asked
        if stamp is None or asked is None:
            raise Gone(
                "the impression doesn't say what was asked: it was made before impressions did"
            )
        found.policy = policy_then(known, impression.user_id, stamp)
        found.session = self._sessions.of(impression)
        pipeline = self._replica.at(stamp, asked)
        found.answer = answer = answer_again(pipeline, impression, found.session, found.policy)
        other = unlike(stamp, answer.stamp)
        if other:
            said = ", ".join(
                f"{its.field} was {its.logged!r} and is {its.again!r}" for its in other
            )
            raise Gone(f"the state of the stamp can't be made again: {said}")
        skipped = set(impression.degraded) - set(answer.degraded)
        if skipped:
            raise Gone(
                f"the answer went without {', '.join(sorted(skipped))}: by a failure, which no "
                "log can tell"
            )
        found.differences = differences(impression, answer.impression)
        found.verdict = DIFFERENT if found.differences else EQUAL

    def _what_is_left(self, found: Explained) -> None:
        impression = found.impression
        if impression is None or impression.stamp is None or found.policy is None:
            return
        try:
            self._replica.weights_at(impression.stamp)
            replica, pipeline = self._replica.replica, self._replica.pipeline
            found.scores = same_scores(replica, pipeline, impression, found.policy)
        except (Gone, ValueError) as error:
            found.why += f"; {error}"

    # --- the archive ---

    def _archived(self, request_id: str) -> Impression | None:
        import polars as pl

        from training.archive.writer import read_archive

        if not self._archive.exists():
            return None
        its = (pl.col("request_id") == request_id) & (pl.col("type") == "impression")
        values = read_archive(self._archive, EVENTS).filter(its).select("value").collect()
        found = (impression_of(value, request_id) for value in values["value"])
        return next((one for one in found if one is not None), None)

    def _older(self, partition: int, key: bytes, before: int) -> Iterable[Record]:
        import polars as pl

        from training.archive.writer import read_archive

        if not before or not self._archive.exists():
            return []
        its = (
            (pl.col("partition") == partition)
            & (pl.col("offset") < before)
            & (pl.col("key") == key)
        )
        rows = read_archive(self._archive, EVENTS).filter(its).select("offset", "key", "value")
        return [Record(*row) for row in rows.collect().rows()]
