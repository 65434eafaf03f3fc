"""Records that the system derives from events: examples, steps, deltas, item state, control, dead letters.

Each derived record says where it came from, so that a consumer drops repeats: exactly once through state.
Training and serving meet only in these records (and in snapshots); all are MessagePack on the log.
"""

from collections.abc import Iterable
from typing import Any, Final, TypeVar

import msgspec

from recsys.events.event_types import FeatureBlock, Stamp
from recsys.events.hashing import Id
from recsys.log.protocol import Topic

R = TypeVar("R")


class TrainingExample(msgspec.Struct, kw_only=True, gc=False):
    """What is learned of an example, and its id. Whoever learns decodes this much of it: the rest takes five
    times as long. A field that learning needs belongs here, all others into ``Example``.

    ``labels`` are in the order of the feature set's labels. A ``correction`` carries the labels as they are
    now, and ``previous`` those that were learned before.

    ``arrived``: of the engagements that a label stands for, the share that comes by the time such an example
    is emitted, in (0, 1]; empty: all. In a correction, 0 where the example was weighted for it already.
    ``kept``: the rate at which examples without an engagement are kept. ``sampled_out``: this one was not,
    and an engagement came later; its ``previous`` were never learned (training/continual/open_labels.py).
    """

    partition: int
    offset: int
    index: int
    labels: list[float]
    watch_ms: int = 0
    correction: bool = False
    previous: list[float] = []
    arrived: list[float] = []
    kept: float = 1.0
    sampled_out: bool = False
    served_by: str = ""  # line/epoch: one that is rolled back teaches nothing more
    features: FeatureBlock | None = None  # of this one item: N = 1


class Example(TrainingExample, kw_only=True):
    """One shown item with its engagements. (partition, offset, index) of its impression is its id."""

    sequence: int  # the how-manyth example of its partition: repeats after a restart have the same
    request_id: str
    user_id: Id
    item_id: Id
    surface: str
    shown_ms: int
    closed_ms: int  # event time at which it was emitted
    view_ended_ms: int = 0  # by its client's clock, of the view that brought it about; 0: none did
    propensity: float = 1.0
    stamp: Stamp | None = None
    predicted: bytes = b""  # of this one item, as in its impression: float32 (L,)


def served_by(stamp: Stamp | None) -> str:
    """Who answered, as lessons and step records name it; empty where nobody says."""
    return f"{stamp.line}/{stamp.epoch}" if stamp else ""


class ErasedExample(msgspec.Struct, frozen=True, kw_only=True, tag="erased"):
    """What is left of an example, or of a ``Forget``, whose user was forgotten: an empty place among
    ``examples``, so that the others stay where they were and steps are cut into the same lanes."""

    sequence: int
    closed_ms: int


class Forget(msgspec.Struct, frozen=True, kw_only=True, tag="forget"):
    """After a user's last example: the step that it is in drops the user's rows. (partition, offset) is the
    request's place among the user's events."""

    partition: int
    offset: int
    sequence: int  # as those of examples
    user_id: Id
    closed_ms: int


class Range(msgspec.Struct, frozen=True):
    """Offsets [start, stop) of one partition of ``examples``."""

    partition: int
    start: int
    stop: int


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One synchronous micro-batch of a line, appended to ``steps`` before anyone trains on it."""

    line: str
    epoch: int
    step: int  # 1 for the first step of a line
    ranges: list[Range]
    examples: int
    lanes: int
    time_ms: int  # event time: the newest closed_ms in it
    config: str  # digest of what learning depends on
    lookahead: int = 0  # k: rows are those after step - 1 - k
    without: list[str] = []  # line/epoch that were rolled back: what they served is left out
    rehearsed: list[Range] = []  # older examples that it learns again, so as not to forget them …
    rehearsed_weight: float = 1.0  # … each with such a weight; they are not judged
    held: bool = False  # replicas are given its rows with a later step
    rate: float = 1.0  # times the usual learning rates, of rows and dense parameters


class TableRows(msgspec.Struct, frozen=True, kw_only=True):
    """Rows of one table: keys int64 (n,), values (n, dim) in the delta's format, removed int64 (m,),
    little-endian."""

    table: str
    dim: int
    keys: bytes = b""
    values: bytes = b""
    removed: bytes = b""


class Delta(msgspec.Struct, frozen=True, kw_only=True):
    """What one shard publishes of one step. A step is complete with all its ``parts``.

    ``base_step`` is the step that this part builds on; ``checksum`` is the CRC-32 of everything else.
    """

    line: str
    epoch: int
    step: int
    base_step: int
    part: int
    parts: int
    tables: list[TableRows] = []
    format: str = "fp32"  # of rows and dense parameters: parameter_server/publish/rounding.py
    dense: bytes = b""  # the flat dense parameters; from part 0 only
    # Prequential sums of the step, from part 0 only; from every part what it refused ("refused_…").
    metrics: dict[str, float] = {}
    time_ms: int = 0
    digest: int | None = None  # now and then: of all that this part has published
    checksum: int = 0


class ItemState(msgspec.Struct, frozen=True, kw_only=True):
    """Running counters as they are now, absolute: setting them twice does no harm.

    ``keys`` int64 (n,), ``values`` float32 (n, C), ``last_ms`` int64 (n,): see recsys/features/counters.py.
    ``offsets`` are those of ``events``, by partition, up to which they were folded. Where all counters are
    told again, ``part`` of ``parts`` says so: who has read all of them knows what there is.
    """

    offsets: list[int]
    keys: bytes
    values: bytes
    last_ms: bytes
    part: int = 0
    parts: int = 0  # 0: only what changed


class Scores(msgspec.Struct, frozen=True, kw_only=True):
    """What a candidate gave a part of a step's examples before it learned them, beside what live had given
    them when they were served. Of the first label; arrays are little-endian, one entry an example.

    ``against``: (line, epoch) that served them. ``segments``: int64, a bit for each of ``names``.
    """

    line: str
    against: tuple[str, int]
    step: int
    time_ms: int  # event time: that of the step
    users: bytes = b""  # int64: hashes of their ids
    live: bytes = b""  # float32
    candidate: bytes = b""  # float32
    labels: bytes = b""  # uint8
    segments: bytes = b""
    names: list[str] = []
    weights: bytes = (
        b""  # float32: of those that stand for others, which weren't kept; empty: 1 each
    )
    # Now and then: whether engaged items were among the best 300 of live (1) and of the candidate (2), of
    # whose (int64), uint8; and what it costs and would pick.
    hits: bytes = b""
    hit_users: bytes = b""
    figures: dict[str, float] = {}
    refused: str = ""  # why it can't be scored


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """What could not be read, raw, with the reason and where it stood."""

    topic: str
    partition: int
    offset: int
    reason: str
    raw: bytes
    time_ms: int = 0


EVENTS: Final = "events"
ITEMS: Final = "items"
ITEM_STATE: Final = "item_state"
EXAMPLES: Final = "examples"
STEPS: Final = "steps"
DELTAS: Final = "deltas"
SCORES: Final = "scores"
CONTROL: Final = "control"
DEAD_LETTERS: Final = "dead_letters"

_HOUR_MS = 3_600_000
_DELTA_BYTES = 4 << 30


def topics(partitions: int, retention_hours: int = 72) -> list[Topic]:
    """All topics of a system. The catalogue, the step records and control never expire."""
    kept = retention_hours * _HOUR_MS
    return [
        Topic(EVENTS, partitions, kept),
        Topic(ITEMS, 1),
        Topic(ITEM_STATE, 1, kept),
        Topic(EXAMPLES, partitions, kept),
        Topic(STEPS, 1),
        # Each step publishes all dense parameters: a replica further behind starts from a snapshot.
        Topic(DELTAS, 1, kept, _DELTA_BYTES),
        Topic(SCORES, 1, kept),
        Topic(CONTROL, 1),
        Topic(DEAD_LETTERS, 1, kept),
    ]


def pack(record: msgspec.Struct) -> bytes:
    """A derived record as it stands on the log."""
    return _encoder.encode(record)


def unpack(value: bytes, kind: type[R]) -> R:
    """Reads a derived record; raises msgspec.MsgspecError where it isn't one."""
    try:
        return _decoder(kind).decode(value)
    except UnicodeDecodeError as error:  # msgspec lets it through: a text in it is no UTF-8
        raise msgspec.DecodeError(str(error)) from None


def unpack_all(values: Iterable[bytes], kind: type[R]) -> list[R]:
    """As ``unpack``, for many; raises at the first that isn't one."""
    try:
        return list(map(_decoder(kind).decode, values))
    except UnicodeDecodeError as error:
        raise msgspec.DecodeError(str(error)) from None


def _decoder(kind: type[R]) -> "msgspec.msgpack.Decoder[R]":
    """One for each kind: to make one takes longer than to read a small record."""
    found = _decoders.get(kind)
    if found is None:
        found = _decoders[kind] = msgspec.msgpack.Decoder(kind)
    return found


def non_example(value: bytes) -> ErasedExample | Forget | None:
    """A record of ``examples`` that isn't one by intent; None where it is one, or can't be read."""
    try:
        return _without.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


_encoder = msgspec.msgpack.Encoder()
_decoders: dict[type, "msgspec.msgpack.Decoder[Any]"] = {}
_without: "msgspec.msgpack.Decoder[ErasedExample | Forget]" = msgspec.msgpack.Decoder(ErasedExample | Forget)
