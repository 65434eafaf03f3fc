"""Base of all kinds of lines beside the live one. A line's state carries the rules of its kind.

Each kind is a subclass in a file of this folder, and is found there: nothing else names it. It overrides only
what differs from a line that is compared with nothing, answers nobody and is in no registry. Transitions
return the next state, judgements a verdict; the fold (experiments/promotion/lifecycle.py), the director, the
shadow part and the replicas ask and act.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, Final, NamedTuple, Self

from experiments.evidence.line_evidence import LineEvidence
from experiments.evidence.verdict import Evidence, Verdict
from recsys.config.promotion_config import PromotionConfig
from recsys.events.control_records import ArmLine, Candidate, Decision, Live, ModelSize
from recsys.events.hashing import Id

SHADOW, LIVE, ENDED = "shadow", "live", "ended"  # stages that several kinds have
KINDS: Final = list[type["LineState"]]()  # all kinds, in the order of their files


class ServedLines(NamedTuple):
    """Two lines (line/epoch) whose lists are compared, from a time on. ``from_first``: lists of the other
    line before the own line's first don't count. ``alpha``: probability that any bound is ever wrong."""

    own: str
    other: str
    since_ms: int
    alpha: float
    from_first: bool = False


@dataclass(frozen=True)
class LineState(ABC):
    """State of one line. ``candidate``: the record that it began with. ``share``: of users that it answers.
    ``epoch``: of the live line that will begin with it. ``since_ms``: start of its stage."""

    candidate: Candidate
    stage: str = SHADOW
    share: float = 0.0
    epoch: int = 0
    since_ms: int = 0
    why: str = ""

    first_stage: ClassVar[str] = SHADOW
    # Whether a person proposes, approves and rolls it back, and it may become live.
    is_candidate: ClassVar[bool] = False
    # Whether it may answer requests: its snapshots explain the answers as long as the log has them.
    answers: ClassVar[bool] = False
    # Whether it is compared with live on each step's examples.
    is_scored: ClassVar[bool] = True
    # Lines of the smallest number are judged first.
    priority: ClassVar[int] = 1

    def __init_subclass__(cls) -> None:
        KINDS.append(cls)

    # --- beginning ---

    @classmethod
    def is_begun_by(cls, record: Candidate) -> bool:
        """Whether a candidate record begins a line of this kind."""
        return False

    @classmethod
    def begin(cls, record: Candidate) -> Self:
        """State with which a candidate record begins."""
        return cls(record, cls.first_stage, since_ms=record.time_ms)

    @classmethod
    def begin_beside(cls, live: Live, replaced: ModelSize | None) -> Self | None:
        """State of a line that begins with a live record, if one of this kind does. ``replaced``: size of
        the live model before."""
        return None

    @classmethod
    def reserves(cls, name: str) -> str:
        """Reason why no candidate may have a name, as lines of this kind have such; empty if it may."""
        return ""

    def source(self, live_epoch: int) -> int | None:
        """Epoch of the live line from whose newest snapshot it begins; None: from a registry."""
        return live_epoch

    # --- transitions ---

    def moved(self, stage: str, since_ms: int, why: str) -> Self:
        """State in another stage, in which it answers no share of the users."""
        return replace(self, stage=stage, share=0.0, epoch=0, since_ms=since_ms, why=why)

    def after_live(self, live: Live, first: bool) -> Self:
        """State after a live record. ``first``: of the system."""
        if live.candidate == self.line:
            return self.moved(LIVE, live.time_ms, live.reason)
        # An active one has learned from history that is no longer the line's.
        if self.stage == LIVE or (self.active and not first and not live.candidate):
            return self.moved(ENDED, live.time_ms, live.reason)
        return self

    def after_decision(self, decision: Decision) -> Self:
        """State after a decision about it."""
        if self.active and decision.final:
            return self.moved(ENDED, decision.time_ms, decision.why)
        return self

    # --- now ---

    @property
    def line(self) -> str:
        return self.candidate.line

    @property
    def active(self) -> bool:
        """Whether it learns, or is scored."""
        return self.stage not in (LIVE, ENDED)

    @property
    def arm(self) -> ArmLine | None:
        """The arm for whose users it learns, and that it answers; None: it learns for all users."""
        return None

    @property
    def publishes(self) -> bool:
        """Whether its deltas are published, for replicas."""
        return False

    def serves(self, user_id: Id) -> bool:
        """Whether it answers a user who is in no arm with a line of its own."""
        return False

    @property
    def moves_live(self) -> bool:
        """Whether it is about to change what is live, so that nothing else may."""
        return False

    @property
    def kept_epoch(self) -> int | None:
        """Epoch of the live line whose newest snapshot, and the examples after it, must stay for it."""
        return None

    # --- judging ---

    def new_evidence(self, rules: PromotionConfig, retrieves: bool) -> LineEvidence:
        """Empty evidence. ``retrieves``: whether its retrieval is compared, too."""
        return LineEvidence(rules)

    def served_lines(self, live: str, rules: PromotionConfig) -> ServedLines | None:
        """Lines whose lists are compared now; None: none are. ``live``: line/epoch."""
        return None

    @abstractmethod
    def judge(self, evidence: Evidence, rules: PromotionConfig) -> Verdict:
        """Verdict on the current evidence."""

    @abstractmethod
    def requested_rollback(self, why: str, evidence: Evidence) -> Verdict:
        """Verdict when an operator asks to roll it back. A Hold that isn't final refuses."""

    def can_take_back(self, live: Live, evidence: Evidence) -> bool:
        """Whether a rollback of it makes the line that ``live`` replaced live again."""
        return False
