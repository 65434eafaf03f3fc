"""Cohorts, what is rehearsed of them, and how much; and that a step with it is data as any other."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from benchmarks.studies.drift.rehearsal import (
    Cohorts,
    ForgettingConfig,
    ForgettingControl,
    Rehearsal,
    RehearsingSequencer,
)
from benchmarks.studies.drift.world_aba import WorldABA
from parameter_server.rpc.parameter_client import LocalClient
from parameter_server.shard.shard import digest_of_shards
from recsys.config.system_config import StepConfig
from recsys.events.records import EXAMPLES, STEPS, ErasedExample, Range, pack
from recsys.log.protocol import Append
from recsys.model.model import build_model
from tests.support.training.small_feed import (
    FEATURES,
    append_examples,
    example,
    toy_config,
    toy_log,
)
from training.continual.learner import Learner
from training.continual.worker import Worker
from training.lines.line import learning_digest, spec_of
from training.steps.sequencer import Sequencer
from training.steps.step_reader import ExampleCheck, read_lanes

HOUR_MS = 3_600_000
SMALL = ForgettingConfig(window_ms=HOUR_MS, examples=16, cohorts=3)


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(60)))
def test_which_places_are_kept_hangs_on_no_order(order: list[int]) -> None:
    ours, theirs = Cohorts(SMALL), Cohorts(SMALL)
    for offset in order:
        ours.take(0, offset, 5)
    for offset in range(60):
        theirs.take(0, offset, 5)
    assert ours.panel(0) == theirs.panel(0) and ours.rehearsed(0) == theirs.rehearsed(0)
    assert len(ours.panel(0)) + len(ours.rehearsed(0)) == 16


def test_panel_and_rehearsed_are_apart_and_old_cohorts_go() -> None:
    cohorts = Cohorts(SMALL)
    for offset in range(500):
        cohorts.take(offset % 2, offset, offset * HOUR_MS // 100)
    assert cohorts.windows == [2, 3, 4]
    assert not set(cohorts.panel(3)) & set(cohorts.rehearsed(3))
    assert cohorts.panel(0) == [] and 200 <= (cohorts.oldest(0) or 0) < 300
    cohorts.take(0, 1, 0)  # too late
    assert cohorts.windows == [2, 3, 4]
    assert Cohorts(SMALL).oldest(0) is None


def rehearsal(share: float) -> Rehearsal:
    found = Rehearsal(SMALL)
    for offset in range(300):
        found.arrived(0, offset, offset * HOUR_MS // 100)
    found.share = share
    return found


def test_only_old_cohorts_are_rehearsed_each_place_once_and_again_the_same() -> None:
    its = rehearsal(0.5)
    assert its.old == [0]
    drawn = its.draw(7, 20)
    assert 0 < len(drawn) <= 10
    assert all(part.stop == part.start + 1 <= 100 for part in drawn)
    assert drawn == sorted(set(drawn), key=lambda part: part.start) == rehearsal(0.5).draw(7, 20)
    assert drawn != its.draw(8, 20)
    assert rehearsal(0.0).draw(7, 20) == []


def test_control_keeps_the_band() -> None:
    control = ForgettingControl(SMALL)
    assert control.window({}).share == 0.0
    assert control.window({0: 0.50}).share == 0.0  # its best
    told = control.window({0: 0.55})
    assert (told.share, told.worst) == (SMALL.start, 0)
    assert told.excess == pytest.approx(0.1)
    for _ in range(5):
        told = control.window({0: 0.55, 1: 0.4})
    assert told.share == SMALL.most
    assert control.window({0: 0.508}).share == SMALL.most  # within the band, but not well
    shares = [control.window({0: 0.5}).share for _ in range(6)]
    assert shares == sorted(shares, reverse=True) and shares[-1] == 0.0
    with pytest.raises(ValueError, match="cohort 3 is nan"):
        control.window({3: float("nan")})


def test_configuration_is_checked() -> None:
    with pytest.raises(ValueError, match="examples 1"):
        ForgettingConfig(examples=1)
    with pytest.raises(ValueError, match="start 0.9"):
        ForgettingConfig(start=0.9)


def test_a_sequencer_rehearses_what_it_is_told_and_by_default_nothing() -> None:
    config, options = StepConfig(examples=8), {"line": "m", "epoch": 0, "digest": ""}
    rehearsing = RehearsingSequencer(rehearsal(0.5), config, **options)
    for sequencer in (Sequencer(config, **options), rehearsing):  # type: ignore[arg-type]
        for offset in range(300, 308):
            sequencer.arrived(0, offset, 3 * HOUR_MS, 0)
        step = sequencer.cut(0)
        assert step is not None and bool(step.rehearsed) == (sequencer is rehearsing)
        assert step.examples == 8 and step.rehearsed_weight == 1.0


CONFIG = toy_config(examples=8)


def learned(rehearsed: list[Range], weight: float = 1.0) -> tuple[str, dict[str, float]]:
    """The digest of a line after two steps, of which the second rehearses; and the metrics of that."""
    log, deltas = toy_log(), []
    append_examples(log, [example(n, partition=0, offset=n) for n in range(16)])
    if rehearsed and rehearsed[0].partition == 1:
        log.append(EXAMPLES, [Append(1, b"", pack(ErasedExample(sequence=1, closed_ms=1)))])
    model = build_model(FEATURES, CONFIG.model)
    client = LocalClient.fresh(spec_of(CONFIG), model.read_dense(), deltas.append)
    sequencer = Sequencer(
        CONFIG.step, line="main", epoch=0, digest=learning_digest(CONFIG, FEATURES)
    )
    for n in range(16):
        sequencer.arrived(0, n, n, 0)
    first, second = sequencer.cut(0), sequencer.cut(0)
    assert first is not None and second is not None
    second = replace(second, rehearsed=rehearsed, rehearsed_weight=weight)
    log.append(STEPS, [Append(0, b"", pack(first)), Append(0, b"", pack(second))])
    worker = Worker(0, 1, log, client, Learner(model), CONFIG)
    while worker.turn():
        pass
    return digest_of_shards(client.shards), dict(deltas[-1].metrics)


def test_what_is_rehearsed_is_learned_and_not_judged() -> None:
    plain, judged = learned([])
    again, also = learned([Range(0, 1, 2), Range(0, 5, 7)])
    assert plain != again == learned([Range(0, 1, 2), Range(0, 5, 7)])[0]
    assert again != learned([Range(0, 1, 2), Range(0, 5, 7)], weight=0.5)[0]
    assert also["examples"] == judged["examples"] == 8
    also, judged = (
        {n: np.float32(v) for n, v in metrics.items() if not n.startswith("moved.")}
        for metrics in (also, judged)
    )
    assert also == pytest.approx(judged, rel=1e-5)


def test_the_place_of_who_was_forgotten_is_empty_here_too() -> None:
    assert learned([Range(1, 0, 1)])[0] == learned([])[0]


def test_what_is_rehearsed_is_cut_into_lanes() -> None:
    log = toy_log()
    append_examples(log, [example(n, partition=0, offset=n) for n in range(16)])
    sequencer = Sequencer(CONFIG.step, line="main", epoch=0, digest="")
    for n in range(8):
        sequencer.arrived(0, n, n, 0)
    step = sequencer.cut(0)
    step = replace(step, rehearsed=[Range(0, 8, 14)])  # type: ignore[type-var]
    check = ExampleCheck(
        FEATURES, Learner(build_model(FEATURES, CONFIG.model)).model.ranker.shape.dense
    )
    lanes = read_lanes(log, step, range(4), check)  # type: ignore[arg-type]
    assert [len(its.rehearsed) for its in lanes.values()] == [1, 2, 1, 2]
    assert [e.offset for its in lanes.values() for e in its.rehearsed] == list(range(8, 14))
    assert read_lanes(log, step, {2}, check)[2].rehearsed == lanes[2].rehearsed  # type: ignore[arg-type]


def test_the_world_goes_from_a_to_b_and_back() -> None:
    its = WorldABA(3, 40, 60, phase_ms=HOUR_MS)
    a, b, back = its.starts_ms()
    first = [its.true_long_view("u1", f"w{n}", a) for n in range(30)]
    assert first == [its.true_long_view("u1", f"w{n}", back + HOUR_MS) for n in range(30)]
    other = [its.true_long_view("u1", f"w{n}", b) for n in range(30)]
    assert np.corrcoef(first, other)[0, 1] < 0.7
    people = WorldABA(3, 40, 60, phase_ms=HOUR_MS, change="people")
    of = [{r.user_id for r in people.next_requests(s, s + 60_000)} for s in people.starts_ms()]
    assert not of[0] & of[1] and of[0] & of[2]
    same = WorldABA(3, 40, 60, phase_ms=HOUR_MS, change="nothing")
    assert first == [same.true_long_view("u1", f"w{n}", b) for n in range(30)]
    with pytest.raises(ValueError, match="change is 'all'"):
        WorldABA(3, phase_ms=1, change="all")
