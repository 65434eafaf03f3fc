"""A user who is forgotten: their rows leave with a step, and empty places change nobody else's lane."""

from itertools import count

import msgspec
import numpy as np

from parameter_server.publish.deltas import to_arrays
from parameter_server.rpc.parameter_client import LocalClient
from recsys.events.hashing import key_of
from recsys.events.records import DEAD_LETTERS, EXAMPLES, Delta, ErasedExample, Example, Forget, pack
from recsys.log.protocol import Append, MemoryLog
from recsys.model.model import build_model
from tests.support.training.small_feed import (
    DENSE,
    FEATURES,
    append_examples,
    block,
    example,
    toy_config,
    toy_log,
)
from training.continual.learner import Learner
from training.continual.worker import Worker
from training.lines.line import spec_of
from training.steps.sequencer_loop import SequencerLoop
from training.steps.step_reader import ExampleCheck, StepReader, read_lanes

CONFIG = toy_config(examples=8, shards=2)
CHECK = ExampleCheck(FEATURES, DENSE)


def learned(log: MemoryLog) -> tuple[Worker, LocalClient, list[Delta]]:
    sequencer = SequencerLoop(log, CONFIG, FEATURES, count(0, 1_000).__next__)
    while sequencer.turn():
        pass
    deltas: list[Delta] = []
    model = build_model(FEATURES, CONFIG.model)
    client = LocalClient.fresh(spec_of(CONFIG), model.read_dense(), deltas.append)
    worker = Worker(0, 1, log, client, Learner(model), CONFIG)
    while worker.step < sequencer.step:
        worker.turn()
    return worker, client, deltas


def of_user(n: int, user: str) -> Example:
    """An example whose features name its user, as the feature builder's do."""
    features = block(n)
    keys = np.frombuffer(features.user_keys, np.int64).copy()
    keys[0] = key_of("user", user)
    named = msgspec.structs.replace(features, user_keys=keys.tobytes())
    return example(n, partition=0, user_id=user, features=named)


def test_rows_of_a_forgotten_user_leave_with_a_step_and_it_is_told() -> None:
    log = toy_log()
    append_examples(log, [of_user(n, f"u{n % 4}") for n in range(16)])
    forget = Forget(partition=0, offset=9, sequence=50, user_id="u1", closed_ms=1)
    log.append(EXAMPLES, [Append(0, b"u1", pack(forget))])
    worker, client, deltas = learned(log)
    key = np.array([key_of("user", "u1"), key_of("user", "u2")])
    for table in ("users", "features"):
        there = [np.isin(key, s.tables[table].export()["keys"]) for s in client.shards]
        assert np.any(there, axis=0).tolist() == [False, True]
        gone = [to_arrays(d)[table].removed.tolist() for d in deltas if table in to_arrays(d)]
        assert sum(gone, []) == [key[0]]
    assert worker.counts["left_out"] == 0 == log.end(DEAD_LETTERS, 0)


def test_an_empty_place_leaves_the_lanes_of_the_others_as_they_were() -> None:
    whole, erased = toy_log(), toy_log()
    examples = [example(n) for n in range(16)]
    append_examples(whole, examples)
    for its in examples:
        value = pack(its)
        if its.user_id == "u3":
            value = pack(ErasedExample(sequence=its.sequence, closed_ms=its.closed_ms))
        erased.append(EXAMPLES, [Append(its.partition, b"", value)])
    for log in (whole, erased):
        SequencerLoop(log, CONFIG, FEATURES, lambda: 10**15).turn()
    for number in (1, 2):
        steps = [StepReader(log, "main", 0).record(number) for log in (whole, erased)]
        assert steps[0] == steps[1] is not None
        before = read_lanes(whole, steps[0], range(4), CHECK)
        after = read_lanes(erased, steps[0], range(4), CHECK)
        gone = {(its.partition, its.offset) for its in examples if its.user_id == "u3"}
        for lane, its in before.items():
            left = [e for e in its.examples if (e.partition, e.offset) not in gone]
            assert after[lane].examples == left
            assert after[lane].left_out == []
    worker, _, _ = learned(erased)
    assert worker.counts["left_out"] == 0 == erased.end(DEAD_LETTERS, 0)
