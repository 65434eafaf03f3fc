"""Records of the topic `control`: live pointer, candidates, decisions, operator requests, experiments,
erasures, unlearning, holds of the live line, alarms, API keys."""

from typing import Annotated, Final

import msgspec

from recsys.events.hashing import Id
from recsys.events.records import Range


class ModelSize(msgspec.Struct, frozen=True):
    """Parameters that may differ between the models of one system: the dimension of feature rows, the
    ranker's hidden layers, the features that it reads, and the ranker itself. Everything else, item and user
    vectors too, is as configured (``model``). ``features``: a feature set as JSON; empty: that of the state
    folder's file. ``ranker``: as in ``model.ranker``; unset: the built-in one."""

    dim: Annotated[int, msgspec.Meta(ge=1, le=1024)]
    hidden: tuple[Annotated[int, msgspec.Meta(ge=1, le=65_536)], ...]
    features: str = ""
    ranker: str | msgspec.UnsetType = msgspec.UNSET


class Live(msgspec.Struct, frozen=True, kw_only=True, tag="live"):
    """The live pointer: the line that serves. Appended by the director only.

    The epoch starts from a snapshot of step ``base_step`` and relearns what ``parent_epoch`` learned after
    it. If that isn't the previous epoch, the line was rolled back: the epochs between are skipped, and
    examples that they served are left out. ``candidate``: the line that became live, or empty. ``guarded``:
    the parent epoch keeps learning beside this one and replaces it if this one is known to be worse.
    ``size``: of its model; None: as configured.
    """

    line: str
    epoch: int
    reason: str = ""
    time_ms: int = 0
    base_step: int = msgspec.field(default=0, name="since")
    parent_epoch: int = msgspec.field(default=0, name="of")
    candidate: str = ""
    size: ModelSize | None = None
    guarded: bool = False


class ArmLine(msgspec.Struct, frozen=True, kw_only=True):
    """The experiment arm whose users a line answers. ``trains``: experiments/assignment/arm_line.py."""

    experiment: str
    arm: str
    trains: str


class Candidate(msgspec.Struct, frozen=True, kw_only=True, tag="candidate"):
    """A line that applies to become live. ``registry``: its folder. ``learns``: whether it keeps learning
    from the stream or is scored unchanged. ``size``: of its model; None: as configured. ``arm``: instead of
    applying, it branches off the live line and answers an arm of an experiment."""

    line: str
    registry: str
    kind: str = ""
    learns: bool = True
    time_ms: int = 0
    size: ModelSize | None = None
    arm: ArmLine | None = None


# Stages of a definition: state of its feature set is folded; new replicas answer with it; all do.
FOLDED, ANSWERS, ALONE = "folded", "answers", "alone"


class Definition(msgspec.Struct, frozen=True, kw_only=True, tag="definition"):
    """Change of the app's definition in a running system (``recsys app apply``). Feature sets, as JSON:
    ``reads``: declared by the definition; ``logged``: computed and logged from now on; ``before``: logged
    until now. ``app``: the definition's text. ``stage``: folded, answers or alone, from which on state of
    other sets isn't needed; each stage appends the record again."""

    digest: str
    reads: str
    logged: str
    before: str
    stage: str
    app: str = ""
    time_ms: int = 0


class Decision(msgspec.Struct, frozen=True, kw_only=True, tag="decision"):
    """Decision about a line beside live (experiments/promotion/kinds/). A ``rollback`` of a guard concerns
    the live line. Appended by the director only.

    ``verdict``: promote, hold or rollback. ``to``: the stage after promotion, canary or all; ``epoch``: of
    the live line that starts with it. ``share``: of users whom it answers from now on, as canary. ``final``:
    the candidate is given up. ``evidence``: the numbers.
    """

    line: str
    verdict: str = msgspec.field(name="said")
    to: str = ""
    epoch: int = 0
    share: float = 0.0
    final: bool = False
    why: str = ""
    evidence: dict[str, float] = {}
    time_ms: int = 0


REQUEST_MS: Final = 30_000  # a request seen later has no effect: nobody waits for it
TOO_LATE: Final = "it came too late: a request counts for 30 s; ask again, while the director runs"


def is_too_late(request: "OperatorRequest | ExperimentRequest", now_ms: int) -> bool:
    """Whether a request has no effect any more; both times are the machine's, as an operator waits."""
    return bool(request.time_ms) and now_ms - request.time_ms > REQUEST_MS


class OperatorRequest(msgspec.Struct, frozen=True, kw_only=True, tag="wish"):
    """Request of an operator to the director: ``approve`` a waiting candidate, or ``rollback``. ``line``: the
    candidate's; empty: the live one."""

    what: str
    line: str = ""
    reason: str = ""
    time_ms: int = 0


class ExperimentState(msgspec.Struct, frozen=True, kw_only=True):
    """State of an experiment: ``state`` is waiting (for its start), running or stopped; ``traffic`` is the
    current share of its layer's users, ``step`` its step of the ramp since ``since_ms``. ``by_request``: its
    text came with a request and is not a file beside the code."""

    state: str = "running"
    traffic: float = 0.0
    step: int = 0
    since_ms: int = 0
    started_ms: int = 0
    by_request: bool = msgspec.field(default=False, name="given")
    why: str = ""


class Experiments(msgspec.Struct, frozen=True, kw_only=True, tag="experiments"):
    """A new revision of the experiments, as their YAML texts by the names of their files.

    ``states``: by experiment; without one an experiment has always had its file's traffic. ``answers``:
    the offset of the request that caused the revision. ``refused``: why that request was refused, or empty.
    """

    revision: int
    configs: dict[str, str] = {}
    time_ms: int = 0
    states: dict[str, ExperimentState] = msgspec.field(default_factory=dict, name="stands")
    answers: int = -1
    refused: str = ""


class ExperimentRequest(msgspec.Struct, frozen=True, kw_only=True, tag="experiment_wish"):
    """Request of an operator about an experiment: ``start`` the one in ``text``, or ``stop`` the one named
    ``name``. ``at_once``: without its ramp."""

    what: str
    name: str = ""
    text: str = ""
    reason: str = ""
    at_once: bool = False
    time_ms: int = 0


class Erasure(msgspec.Struct, frozen=True, kw_only=True, tag="erasure"):
    """A user asked to be forgotten: their events before ``offset``, and everything derived from them.
    Once that is done, ``user_id`` is empty and ``digest`` is set, by which an older copy of the system can be
    erased again (training/deletion/erasure.py)."""

    user_id: Id
    time_ms: int = 0
    offset: int = 0  # of the tombstone in the user's partition of ``events``
    digest: bytes | msgspec.UnsetType = msgspec.UNSET


class Unlearning(msgspec.Struct, frozen=True, kw_only=True, tag="unlearning"):
    """Users whose examples the live line unlearns (training/deletion/live_unlearning.py). The newest record
    of an ``id`` wins; only the first names the users.

    ``users``: by id (as text), the offset of the removal among their events, up to which nothing stays.
    ``rewind_ms``: if set, the line returns to that time instead and learns again what came after it, but for
    the examples that the ``Withdrawal`` at each user's offset names, and those in ``left_out``; without
    either, all of it.
    ``state``: experiments/promotion/unlearning_requests.py. ``epoch``: of the line without them; it repeats
    the history of ``parent_epoch`` from a snapshot of step ``base_step`` on, with a model of ``size``.
    ``first``: the first step that is learned again; 0: none is. ``step``: the least step to reach, then that
    reached.
    """

    id: str
    state: str = "asked"
    users: dict[str, int] = {}
    epoch: int = 0
    parent_epoch: int = msgspec.field(default=0, name="of")
    base_step: int = msgspec.field(default=0, name="since")
    first: int = 0
    step: int = 0
    size: ModelSize | None = None
    why: str = ""
    time_ms: int = 0
    rewind_ms: int = 0
    left_out: list[Range] = []


class LineHold(msgspec.Struct, frozen=True, kw_only=True, tag="line_hold"):
    """The live line was at fault, by its lists or what it learned (experiments/promotion/line_guard.py).
    Appended by the director only. ``kind``: behind or no_positive. ``since_ms``: event time up to which it
    wasn't. ``action``: rollback, rewind, or empty: nothing can serve in its place.
    """

    line: str
    epoch: int
    kind: str
    reason: str
    action: str = ""
    since_ms: int = 0
    evidence: dict[str, float] = {}
    time_ms: int = 0


class Alarm(msgspec.Struct, frozen=True, kw_only=True, tag="alarm"):
    """Drift detected by a monitor of the director (training/drift/monitors.py). ``kind``: loss, calibration,
    feature or share; ``what``: name of the number; ``at_ms``: event time. ``expected`` and ``measured`` are
    means of blocks, ``scale`` is the standard deviation of one block."""

    kind: str
    what: str
    at_ms: int
    step: int
    expected: float
    measured: float
    scale: float
    detector: str


class ApiKey(msgspec.Struct, frozen=True, kw_only=True, tag="key"):
    """An API key. The newest record of an ``id`` wins.

    ``digest``: SHA-256 of its secret, in hex; 256 random bits need no slow hash. ``scopes``:
    serving/access/scopes.py. ``rate``: calls a second, ``daily``: calls a day; 0: no limit of its own.
    ``user_keys``: public keys (PEM) whose user tokens count. ``until_ms``: when it expires; 0: never.
    """

    id: str
    digest: str
    scopes: list[str]
    name: str = ""
    rate: float = 0.0
    daily: int = 0
    user_keys: list[str] = []
    until_ms: int = 0
    revoked: bool = False
    time_ms: int = 0


class LogClock(msgspec.Struct, frozen=True, kw_only=True, tag="clock"):
    """Clock of the system whose log this is, as the first record, where that isn't the machine's: ``id`` of
    the clock in its state folder, and the configuration that began it."""

    id: str
    start_ms: int
    speed: float


Control = (
    Live | Experiments | ExperimentRequest | Erasure | Unlearning | Candidate | Definition | Decision
    | OperatorRequest | LineHold | Alarm | ApiKey | LogClock
)  # fmt: skip
