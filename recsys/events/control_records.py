"""What stands on the topic `control`: what is live, candidates and decisions, wishes, experiments, alarms."""

from typing import Annotated

import msgspec

from recsys.events.hashing import Id


class ModelSize(msgspec.Struct, frozen=True):
    """What may differ between the models of one system: the dimension of a feature's row, and the hidden
    layers of the ranker. All else, the vectors of items and users too, is as configured (``model``)."""

    dim: Annotated[int, msgspec.Meta(ge=1, le=1024)]
    hidden: tuple[Annotated[int, msgspec.Meta(ge=1, le=65_536)], ...]


class Live(msgspec.Struct, frozen=True, kw_only=True, tag="live"):
    """The live pointer: the line that serves. Appended by the director alone.

    The epoch begins from a snapshot of step ``since``, and learns again what the epoch ``of`` learned then.
    Where that isn't the epoch before it, the line went back: what came between is quarantined, and it goes
    on after that. ``candidate``: the line that became live; empty where none did. ``guarded``: the epoch
    ``of`` goes on learning beside this one, and takes its place again where this one is known to be worse.
    ``size``: of its model; None: as configured.
    """

    line: str
    epoch: int
    reason: str = ""
    time_ms: int = 0
    since: int = 0
    of: int = 0
    candidate: str = ""
    size: ModelSize | None = None
    guarded: bool = False


class ArmLine(msgspec.Struct, frozen=True, kw_only=True):
    """Whose line it is that answers the users of an arm alone. ``trains``: experiments/assignment/arm_line.py."""

    experiment: str
    arm: str
    trains: str


class Candidate(msgspec.Struct, frozen=True, kw_only=True, tag="candidate"):
    """A line wants to be live. ``registry``: the folder that it stands in. ``learns``: whether it goes on
    learning from the stream; else it is scored as it is. ``size``: of its model; None: as configured.
    ``arm``: it doesn't want to be live, but goes on from what is live and answers an arm of an experiment."""

    line: str
    registry: str
    kind: str = ""
    learns: bool = True
    time_ms: int = 0
    size: ModelSize | None = None
    arm: ArmLine | None = None


class Decision(msgspec.Struct, frozen=True, kw_only=True, tag="decision"):
    """What was decided of a candidate (experiments/promotion/promotion.py), or by a guard (experiments/promotion/guard.py): its
    ``rollback`` is that of the live line which it guards. Appended by the director alone.

    ``said``: promote, hold or rollback. ``to``: the stage that it is promoted to, canary or all; ``epoch`` is
    that of the live line which is to begin with it. ``share``: of the users who are answered by it from now
    on, as canary. ``final``: it is given up. ``evidence``: the numbers.
    """

    line: str
    said: str
    to: str = ""
    epoch: int = 0
    share: float = 0.0
    final: bool = False
    why: str = ""
    evidence: dict[str, float] = {}
    time_ms: int = 0


class OperatorRequest(msgspec.Struct, frozen=True, kw_only=True, tag="wish"):
    """What a person asks the director to do: ``approve`` what waits for approval, or ``rollback``. ``line``
    is the candidate's; empty: whatever is live."""

    what: str
    line: str = ""
    reason: str = ""
    time_ms: int = 0


class ExperimentState(msgspec.Struct, frozen=True, kw_only=True):
    """Where an experiment stands: ``state`` is waiting (for its start), running or stopped, ``traffic`` the
    share of its layer's users by now, ``step`` that of its ramp, since ``since_ms``. ``given``: its text came
    with a wish, and isn't one of the files beside the code."""

    state: str = "running"
    traffic: float = 0.0
    step: int = 0
    since_ms: int = 0
    started_ms: int = 0
    given: bool = False
    why: str = ""


class Experiments(msgspec.Struct, frozen=True, kw_only=True, tag="experiments"):
    """A new revision of the experiments, as their YAML texts by the names of their files.

    ``stands``: by experiment; one without has its file's traffic, and always had. ``answers``: the offset of
    the wish that brought it about, which was ``refused`` where that isn't empty.
    """

    revision: int
    configs: dict[str, str] = {}
    time_ms: int = 0
    stands: dict[str, ExperimentState] = {}
    answers: int = -1
    refused: str = ""


class ExperimentRequest(msgspec.Struct, frozen=True, kw_only=True, tag="experiment_wish"):
    """What a person asks the director to do with an experiment: ``start`` what ``text`` says, or ``stop`` the
    one of that ``name``. ``at_once``: without its ramp."""

    what: str
    name: str = ""
    text: str = ""
    reason: str = ""
    at_once: bool = False
    time_ms: int = 0


class Erasure(msgspec.Struct, frozen=True, kw_only=True, tag="erasure"):
    """A user asked to be forgotten: all that stands before ``offset`` among their events, and what came of
    it. ``user_id`` is empty once that is done."""

    user_id: Id
    time_ms: int = 0
    offset: int = 0  # of the tombstone in the user's partition of ``events``


class Alarm(msgspec.Struct, frozen=True, kw_only=True, tag="alarm"):
    """The world has changed, as a monitor of the director found (training/drift/monitors.py). ``kind``: loss,
    calibration, feature or share; ``what``: of which number; ``at_ms``: event time. ``expected`` and
    ``found`` are means of blocks, ``scale`` is the standard deviation of one."""

    kind: str
    what: str
    at_ms: int
    step: int
    expected: float
    found: float
    scale: float
    detector: str


class Reaction(msgspec.Struct, frozen=True, kw_only=True, tag="reaction"):
    """How the live line learns and publishes from the next step on, until the next reaction. Appended by the
    director alone.

    ``rate``: times the usual learning rates. ``publish_every``: so many steps' rows go out together.
    ``offline``: the offline job should run. ``because``: the alarms, in words; empty where there were none.
    """

    rate: float = 1.0
    publish_every: int = 1
    offline: bool = False
    because: list[str] = []
    time_ms: int = 0  # event time


Control = (
    Live | Experiments | ExperimentRequest | Erasure | Candidate | Decision | OperatorRequest | Alarm | Reaction
)
