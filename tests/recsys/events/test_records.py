"""Derived records as they stand on the log, and the topics that hold them."""

import gc

import msgspec
import pytest

from parameter_server.shard import lanes
from recsys.events import control_records, event_types, records
from recsys.events.control_records import Control, Erasure, Experiments, Live, Unlearning
from recsys.events.event_types import FeatureBlock, Stamp, Tick
from recsys.events.records import (
    DeadLetter,
    Delta,
    Example,
    ItemState,
    Range,
    Step,
    TableRows,
    TrainingExample,
    pack,
    topics,
    unpack,
    unpack_all,
)
from recsys.process.latency_tuning import gc_paused
from serving.retrieval.retrieval_shard import ShardRequest
from training.candidates.rollback_impact import AffectedStep

EXAMPLE = Example(
    partition=1,
    offset=5,
    index=0,
    sequence=9,
    request_id="r",
    user_id="u",
    item_id=7,
    surface="feed",
    shown_ms=1,
    closed_ms=2,
    labels=[0.0, 1.0],
    stamp=Stamp(step=3, arms={"e": "a"}),
    features=FeatureBlock(feature_set="f", dense=b"\x00\x01"),
)
EACH = [
    EXAMPLE,
    Step(line="main", epoch=0, step=1, ranges=[Range(0, 1, 5)], examples=4, lanes=4, time_ms=9,
         config="c"),
    Delta(line="main", epoch=0, step=2, base_step=1, part=0, parts=2, dense=b"\xff",
          tables=[TableRows(table="item", dim=2, keys=b"12345678", values=b"12345678")]),
    ItemState(offsets=[1, 2], keys=b"k", values=b"v", last_ms=b"l"),
    Live(line="cand-1", epoch=2),
    Experiments(revision=3, configs={"e": "name: e"}),
    Erasure(user_id="u"),
    Unlearning(id="a", users={"u": 3}),
    DeadLetter(topic="events", partition=0, offset=1, reason="?", raw=b"\xff\x00"),
]  # fmt: skip


@pytest.mark.parametrize("record", EACH, ids=lambda record: type(record).__name__)
def test_a_record_comes_back_from_the_log(record: msgspec.Struct) -> None:
    assert unpack(pack(record), type(record)) == record


def test_control_records_know_what_they_are() -> None:
    for record in EACH[4:8]:
        assert unpack(pack(record), Control) == record  # type: ignore[arg-type]


@pytest.mark.parametrize("raw", [b"", b"\xff", b"\x80", pack(EACH[1])[:-1], pack(EACH[-1])])
def test_what_is_no_such_record_raises_one_kind_of_error(raw: bytes) -> None:
    with pytest.raises(msgspec.MsgspecError):
        unpack(raw, Step)


def test_a_later_writer_may_add_fields() -> None:
    later = msgspec.msgpack.decode(pack(EXAMPLE)) | {"mood": "good"}
    assert unpack(msgspec.msgpack.encode(later), Example) == EXAMPLE


def test_examples_are_partitioned_as_events_and_what_is_folded_from_the_start_never_expires() -> None:
    by_name = {topic.name: topic for topic in topics(8, retention_hours=2)}
    assert by_name[records.EVENTS].partitions == by_name[records.EXAMPLES].partitions == 8
    kept_for_ever = {name for name, topic in by_name.items() if not topic.retention_ms}
    assert kept_for_ever == {records.ITEMS, records.STEPS, records.CONTROL}
    assert by_name[records.EVENTS].retention_ms == 2 * 3_600_000
    divided = {name for name, topic in by_name.items() if topic.partitions > 1}
    assert divided == {records.EVENTS, records.EXAMPLES, records.ITEM_COUNTS}


def test_a_lesson_is_what_is_learned_of_an_example() -> None:
    lesson = unpack_all([pack(EXAMPLE)], TrainingExample)[0]
    assert {name: getattr(EXAMPLE, name) for name in TrainingExample.__struct_fields__} == {
        name: getattr(lesson, name) for name in TrainingExample.__struct_fields__
    }
    with pytest.raises(msgspec.MsgspecError):
        unpack_all([pack(EXAMPLE), pack(Tick(time_ms=1))], TrainingExample)


def test_nothing_is_collected_in_a_pause_even_where_it_fails() -> None:
    with pytest.raises(ZeroDivisionError), gc_paused():
        assert not gc.isenabled()
        1 / 0  # noqa: B018
    assert gc.isenabled()


def test_records_keep_the_names_that_their_fields_have_on_the_log() -> None:
    kinds = [
        *(kind for module in (control_records, event_types, records) for kind in vars(module).values()),
        AffectedStep, ShardRequest, lanes._SumRecord,
    ]  # fmt: skip
    structs = {k for k in kinds if isinstance(k, type) and issubclass(k, msgspec.Struct)}
    assert {
        f"{kind.__name__}.{field.name}": field.encode_name
        for kind in structs
        for field in msgspec.structs.fields(kind)
        if field.name != field.encode_name
    } == {
        "Live.base_step": "since", "Live.parent_epoch": "of", "Unlearning.base_step": "since",
        "Unlearning.parent_epoch": "of", "Decision.verdict": "said",
        "ExperimentState.by_request": "given", "Experiments.states": "stands",
        "Impression.inputs": "asked", "TrainingExample.sampling_rate": "kept",
        "Example.sampling_rate": "kept",
        "AffectedStep.excluded": "quarantined", "ShardRequest.keys": "without",
        "ShardRequest.keys_are_allowed": "only", "ShardRequest.user_vectors": "sides",
    }  # fmt: skip


def test_fields_that_old_records_lack_are_empty_but_for_these() -> None:
    """A record of before a field was added reads as if it had the field's default."""
    defaults = {
        f"{name}.{field.name}": field.default
        for module in (control_records, event_types, records)
        for name, kind in vars(module).items()
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct)
        if kind.__module__ == module.__name__
        for field in msgspec.structs.fields(kind)
        if field.default is not msgspec.NODEFAULT
    }
    assert {name: default for name, default in defaults.items() if default} == {
        "RequestInputs.source_floor": 1.0, "Candidate.learns": True,
        "ExperimentState.state": "running", "Experiments.answers": -1,
        "Unlearning.state": "asked",
        "Stamp.line": "main", "ServedItem.propensity": 1.0, "Item.v": 1, "User.v": 1,
        "Impression.surface": "feed", "Impression.v": 1, "Engagement.surface": "feed",
        "Engagement.v": 1, "Preference.v": 1, "TrainingExample.sampling_rate": 1.0,
        "Example.sampling_rate": 1.0,
        "Example.propensity": 1.0, "Step.rate": 1.0,
        "Delta.format": "fp32", "Choice.each": 1.0,
    }  # fmt: skip
