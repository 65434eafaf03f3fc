"""Records derived from events: examples, steps, deltas, item state, scores, dead letters.

Each carries its source, so that consumers drop repeats: exactly once through state. Training and serving
share only these records and snapshots. All are MessagePack on the log, examples and impressions
compressed (recsys/log/compression.py).
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeVar

import msgspec

from recsys.events.event_types import Event, FeatureBlock, Impression, Item, Stamp, encode
from recsys.events.hashing import Id, partition_of
from recsys.log.compression import compressed, plain
from recsys.log.protocol import Append, Topic

CLICK_LIST: Final = "clicked:"  # beginning of the id of a list that was made of a click
R = TypeVar("R")


class TrainingExample(msgspec.Struct, kw_only=True, gc=False):
    """The fields of an example that training needs, and its id. Training decodes only these: decoding all
    fields takes five times as long. Other fields belong into ``Example``.

    ``labels`` are in the order of the feature set's labels. A ``correction`` carries the current labels, and
    in ``previous`` the labels learned before.

    ``arrived``: by label, the share of its engagements that arrive before such an example is emitted, in (0,
    1]; empty: all. In a correction, 0 if the example was weighted for it already. ``sampling_rate``:
    of examples without an engagement. ``sampled_out``: this one was left out and an engagement came later;
    its ``previous`` were never learned (training/continual/open_labels.py). ``measured``: it counts in
    experiments, and isn't learned: the click in its list is, in the list of candidates that it chose from.
    ``choice`` float32 (R, 1 + F), of an item that got the first label: a row of itself and those of what it
    was chosen before (recsys/model/choice_model.py). In a click's list of candidates the first number alone:
    the other examples of the list are the other rows.
    """

    partition: int
    offset: int
    index: int
    labels: list[float]
    watch_ms: int = 0
    correction: bool = False
    previous: list[float] = []
    arrived: list[float] = []
    sampling_rate: float = msgspec.field(default=1.0, name="kept")
    sampled_out: bool = False
    measured: bool | msgspec.UnsetType = msgspec.UNSET
    served_by: str = ""  # line/epoch; examples of one that was rolled back are not learned
    features: FeatureBlock | None = None  # of this item: N = 1
    choice: bytes = b""


class Example(TrainingExample, kw_only=True):
    """One shown item with its engagements. (partition, offset, index) of its impression is its id."""

    sequence: int  # running number in its partition; repeats after a restart have the same
    request_id: str
    user_id: Id
    item_id: Id
    surface: str
    shown_ms: int
    closed_ms: int  # event time at which it was emitted
    view_ended_ms: int = 0  # end of the view that caused it, by the client's clock; 0: no view
    propensity: float = 1.0
    stamp: Stamp | None = None
    predicted: bytes = b""  # of this item, as in its impression: float32 (L,)


def served_by(stamp: Stamp | None) -> str:
    """The line/epoch that answered, as in examples and step records; empty without a stamp."""
    return f"{stamp.line}/{stamp.epoch}" if stamp else ""


class ErasedExample(msgspec.Struct, frozen=True, kw_only=True, tag="erased"):
    """Placeholder for an example or ``Forget`` of an erased user: the other ``examples`` keep their
    positions, and steps are cut into the same lanes."""

    sequence: int
    closed_ms: int


class Forget(msgspec.Struct, frozen=True, kw_only=True, tag="forget"):
    """Marks the end of an erased user's examples: its step drops the user's rows. (partition, offset) is the
    position of the user's request among ``events``."""

    partition: int
    offset: int
    sequence: int  # as those of examples
    user_id: Id
    closed_ms: int


class Withdrawn(msgspec.Struct, frozen=True, kw_only=True, tag="withdrawn"):
    """Marks the end of a user's examples that a ``Withdrawal`` names, whose position among ``events`` is
    (partition, offset): a replay leaves them out (training/deletion/log_without.py)."""

    partition: int
    offset: int
    sequence: int  # as those of examples
    user_id: Id
    closed_ms: int
    from_ms: int
    requests: dict[str, list[str]] = {}


class Range(msgspec.Struct, frozen=True):
    """Offsets [start, stop) of one partition of ``examples``."""

    partition: int
    start: int
    stop: int


class SampledView(msgspec.Struct, frozen=True, array_like=True):
    """A view whose example is in a step, by ``key_of(request_id, item_id)``, and the example's place."""

    key: int
    partition: int
    offset: int


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One synchronous micro-batch of a line, appended to ``steps`` before anyone trains on it."""

    line: str
    epoch: int
    step: int  # 1 for the first step of a line
    ranges: list[Range]
    examples: int
    lanes: int
    time_ms: int  # event time: the newest closed_ms in it
    config: str  # digest of the settings that learning depends on
    without: list[str] = []  # line/epoch that were rolled back: examples they served are left out
    rate: float = 1.0  # factor on the usual learning rates, of rows and dense parameters
    filled: int = 0  # the first lanes, which its examples are cut into; others are empty; 0: all
    views: list[SampledView] = []  # some of those in it, for replicas to measure delays


class TableRows(msgspec.Struct, frozen=True, kw_only=True):
    """Rows of one table, little-endian: keys int64 (n,), values (n, dim), removed int64 (m,)."""

    table: str
    dim: int
    keys: bytes = b""
    values: bytes = b""
    removed: bytes = b""


class Delta(msgspec.Struct, frozen=True, kw_only=True):
    """Changes that one shard publishes for one step. A step is complete with all its ``parts``.

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
    # Prequential sums of the step, from part 0 only; from every part the rejected gradients ("refused_…").
    metrics: dict[str, float] = {}
    time_ms: int = 0
    digest: int | None = None  # from time to time: of everything that this part has published
    checksum: int = 0


class CovisitRows(msgspec.Struct, frozen=True, array_like=True):
    """Rows of co-visits as bytes: ``keys`` int64 (n,), ``others`` int64 and ``weights`` float32 (n, N),
    ``visits`` float32 (n, 2), at the half-lives of pairs and of trends, ``last_ms`` int64 (n,)."""

    keys: bytes = b""
    others: bytes = b""
    weights: bytes = b""
    visits: bytes = b""
    last_ms: bytes = b""


class ItemState(msgspec.Struct, frozen=True, kw_only=True):
    """Absolute values of running counters; applying them twice is harmless.

    ``keys`` int64 (n,), ``values`` float32 (n, C), ``last_ms`` int64 (n,): see recsys/features/counters.py.
    ``offsets``: next offsets of ``events``, by partition, that the counters cover. ``part`` of ``parts``:
    part of a full copy of all counters and co-visits, from which a reader can start.

    ``visits`` int64 (v, C): new since the record before, see recsys/features/covisits.py; ``covisits``: some
    rows of a full copy; ``gone`` int64: keys of removed rows; ``dropped`` int64: keys of counters that went
    before. ``features``: name of the counted set (recsys/app/set_loops.py).

    On ``item_counts`` it is of one partition, with its offset alone, which its last part reaches.
    ``touched``: the rows are of newest events, which aren't added up. ``whole``: the parts have all counters.
    """

    offsets: list[int]
    keys: bytes
    values: bytes
    last_ms: bytes
    part: int = 0
    parts: int = 0  # 0: only what changed
    visits: bytes = b""
    gone: bytes = b""
    dropped: bytes = b""
    covisits: CovisitRows | None = None
    features: str = ""
    touched: bool = False
    whole: bool = False


class Scores(msgspec.Struct, frozen=True, kw_only=True):
    """Scores of the first label for part of a step's examples: the candidate's before learning them, and the
    live line's when they were served. Arrays are little-endian with one entry per example.

    ``against``: (line, epoch) that served them. ``segments``: int64, one bit for each of ``names``.
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
    weights: bytes = b""  # float32: inverse sampling rates; empty: 1 each
    # From time to time: whether engaged items were among the best 300 of live (1) and of the candidate
    # (2), uint8; their users' hashes, int64; cost of the candidate and concentration of its picks.
    hits: bytes = b""
    hit_users: bytes = b""
    figures: dict[str, float] = {}
    refused: str = ""  # reason why it can't be scored


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """An unreadable record, raw, with its position and the reason."""

    topic: str
    partition: int
    offset: int
    reason: str
    raw: bytes
    time_ms: int = 0


EVENTS: Final = "events"
ITEMS: Final = "items"
ITEM_COUNTS: Final = "item_counts"  # by several workers
ITEM_STATE: Final = "item_state"
EXAMPLES: Final = "examples"
STEPS: Final = "steps"
DELTAS: Final = "deltas"
SCORES: Final = "scores"
CONTROL: Final = "control"
DEAD_LETTERS: Final = "dead_letters"

_HOUR_MS = 3_600_000
# Dense parameters travel again and again: a replica further behind starts from a snapshot.
_DELTA_BYTES = 4 << 30


def topics(
    partitions: int, retention_hours: int = 72, retention_bytes: Mapping[str, int] | None = None
) -> list[Topic]:
    """All topics of a system. The catalogue and control never expire, nor do step records by themselves: the
    director trims them. ``retention_bytes``: of one partition, by topic; 0 or none: without limit."""
    hours, most = retention_hours * _HOUR_MS, {DELTAS: _DELTA_BYTES} | dict(retention_bytes or {})
    return [
        Topic(EVENTS, partitions, hours, most.get(EVENTS, 0)), Topic(ITEMS, 1),
        Topic(ITEM_COUNTS, partitions, hours, most.get(ITEM_COUNTS, 0)),
        Topic(ITEM_STATE, 1, hours, most.get(ITEM_STATE, 0)),
        Topic(EXAMPLES, partitions, hours, most.get(EXAMPLES, 0)), Topic(STEPS, 1),
        Topic(DELTAS, 1, hours, most[DELTAS]), Topic(SCORES, 1, hours, most.get(SCORES, 0)),
        Topic(CONTROL, 1), Topic(DEAD_LETTERS, 1, hours, most.get(DEAD_LETTERS, 0)),
    ]  # fmt: skip


def pack(record: msgspec.Struct) -> bytes:
    """Encodes a derived record for the log. Examples are also compressed there."""
    return _encoder.encode(record)


def unpack(value: bytes, kind: type[R]) -> R:
    """Reads a derived record; raises msgspec.MsgspecError for anything else."""
    try:
        return _decoder(kind).decode(plain(value))
    except UnicodeDecodeError as error:  # msgspec doesn't wrap it: a text isn't UTF-8
        raise msgspec.DecodeError(str(error)) from None


def unpack_all(values: Iterable[bytes], kind: type[R]) -> list[R]:
    """Reads many derived records of one kind; raises msgspec.MsgspecError at the first other record."""
    try:
        return list(map(_decoder(kind).decode, map(plain, values)))
    except UnicodeDecodeError as error:
        raise msgspec.DecodeError(str(error)) from None


def _decoder(kind: type[R]) -> "msgspec.msgpack.Decoder[R]":
    """Cached: creating a decoder takes longer than reading a small record."""
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.msgpack.Decoder(kind)
    return decoder


def non_example(value: bytes) -> ErasedExample | Forget | Withdrawn | None:
    """Reads a record that stands in the place of an example; None for examples and unreadable records."""
    try:
        return _non_example_decoder.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


_encoder = msgspec.msgpack.Encoder()
_decoders: dict[type, "msgspec.msgpack.Decoder[Any]"] = {}
_non_example_decoder: "msgspec.msgpack.Decoder[ErasedExample | Forget | Withdrawn]" = msgspec.msgpack.Decoder(
    ErasedExample | Forget | Withdrawn
)


def record_of(event: Event, partitions: int) -> Append:
    """The record of an event: on ``items``, or in its user's partition of ``events``."""
    if isinstance(event, Item):
        return Append(0, str(event.item_id).encode(), encode(event))
    user_id, value = getattr(event, "user_id", ""), encode(event)
    if isinstance(event, Impression):
        value = compressed(value)
    return Append(partition_of(user_id, partitions), str(user_id).encode(), value)
