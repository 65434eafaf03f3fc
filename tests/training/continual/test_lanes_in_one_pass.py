import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from parameter_server.shard.shard import digest_of_shards
from parameter_server.table.table import initial_rows
from recsys.config.system_config import ModelConfig, tables_of
from recsys.model.model import Model, build_model
from tests.support.training.learner_cases import CONFIG, learned, learner, rows_of
from tests.support.training.learning_loops import Clock, drain, fresh_client, worker
from tests.support.training.small_feed import FEATURES, append_examples, example, toy_config, toy_log
from training.continual import learner as learner_module
from training.continual.learner import Lane, Learned, Learner
from training.steps.sequencer_loop import SequencerLoop

WHOLE = ("default", "no retrieval", "one layer")
MODELS = {
    "toy": CONFIG.model,
    "default": ModelConfig(),
    "no retrieval": ModelConfig(retrieval_weight=0.0),
    "one layer": ModelConfig(hidden=(32,)),
    "narrow vectors": ModelConfig(vector_dim=8),
}


def lanes_of(its: Learner, sizes: Sequence[int]) -> list[Lane]:
    ends = np.cumsum([0, *sizes])
    return [its.prepare([example(n) for n in range(a, b)]) for a, b in itertools.pairwise(ends)]


@pytest.mark.parametrize("whole_list", [False, True])
def test_lanes_of_each_kind_of_features_are_joined(whole_list: bool) -> None:
    declared = replace(FEATURES.declared, whole_list=whole_list)
    its = Learner(build_model(replace(FEATURES, declared=declared), ModelConfig()))
    assert its._verified_joint_model(4, 16) is not None


@pytest.mark.parametrize(
    ("model", "joins"), [("toy", False), ("narrow vectors", False), *((m, True) for m in WHOLE)]
)
@pytest.mark.parametrize("sizes", [(16,) * 4, (16, 16), (48,) * 3, (64,) * 4])
def test_joined_lanes_have_the_bits_that_each_has_alone(
    model: str, joins: bool, sizes: Sequence[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the sizes of the model allow; others aren't whole vectors of a processor."""
    its = Learner(build_model(FEATURES, MODELS[model]))
    tables = {table.name: table for table in tables_of(MODELS[model])}
    lanes = lanes_of(its, sizes)
    rows = [
        {name: initial_rows(tables[name], 0, k) + np.float32(0.01) for name, k in lane.lookup.keys.items()}
        for lane in lanes
    ]
    dense = its.model.read_dense()
    dense += np.random.default_rng(0).normal(0, 0.1, len(dense)).astype(np.float32)
    alone = [its.learn(lane, own, dense) for lane, own in zip(lanes, rows, strict=True)]
    passes = counted_passes(its, monkeypatch)
    for one, other in zip(alone, its.learn_lanes(lanes, rows, dense), strict=True):
        np.testing.assert_array_equal(one.probabilities_BL, other.probabilities_BL)
        np.testing.assert_array_equal(one.dense, other.dense)
        assert one.metrics == other.metrics and one.gradients.keys() == other.gradients.keys()
        for table, columns in one.gradients.items():
            for column, same in zip(columns, other.gradients[table], strict=True):
                np.testing.assert_array_equal(column, same)
        assert one.dense.any() and one.gradients["features"].gradients.any()
    if joins and passes[-1] == 1:
        pytest.skip("on this processor the bits of such lanes in one pass are others")
    assert passes[-1] == len(sizes) or not joins


def counted_passes(its: Learner, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of lanes of each pass to come."""
    passes, inner = list[int](), its._learn

    def counting(model: Model, lanes: Sequence[Lane], *more: Any) -> list[Learned]:
        passes.append(len(lanes))
        return inner(model, lanes, *more)

    monkeypatch.setattr(its, "_learn", counting)
    return passes


def test_lanes_are_compared_once_for_each_number_and_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learner_module, "_bytes", bool)  # equal on any processor
    its = learner()
    passes, dense = counted_passes(its, monkeypatch), its.model.read_dense()
    for size in (16, 16, 32, 16):
        lanes = lanes_of(its, (size, size))
        its.learn_lanes(lanes, [rows_of(lane) for lane in lanes], dense)
    assert passes == [2, 1, 1, 2, 2, 2, 1, 1, 2, 2]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("size", [16, 64])
def test_lanes_that_are_compared_move_every_parameter_and_table(
    model: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else differences would stay hidden, and appear in a later step."""
    its, compared = Learner(build_model(FEATURES, MODELS[model])), list[Learned]()
    inner = its._learn

    def keeping(*all_: Any) -> list[Learned]:
        compared.extend(inner(*all_))
        return compared[-len(all_[1]) :]

    monkeypatch.setattr(its, "_learn", keeping)
    its._verified_joint_model(4, size)
    retrieval = MODELS[model].retrieval_weight > 0
    parameters = [
        (name, p.numel())
        for name, p in its.model.named_parameters()
        if p.numel() and not name.startswith("choice") and (retrieval or name.startswith("ranker"))
    ]
    assert len(compared) == 8
    for one in compared:
        cuts = np.cumsum([size for _, size in parameters])
        for (name, _), part in zip(parameters, np.split(one.dense, cuts), strict=False):
            assert part.any(), name
        assert len(one.gradients) == (3 if retrieval else 1)
        assert all(rows.gradients.any() for rows in one.gradients.values())


def test_lanes_that_differ_in_a_bit_are_learned_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    its = learner()
    lanes, inner = lanes_of(its, (16, 16)), its._learn

    def other(model: Model, *more: Any) -> list[Learned]:
        out = inner(model, *more)
        return [replace(one, dense=one.dense + model.lanes * np.float32(1e-9)) for one in out]

    monkeypatch.setattr(its, "_learn", other)
    rows, dense = [rows_of(lane) for lane in lanes], its.model.read_dense()
    alone = [learned(its, lane) for lane in lanes]
    for _ in range(2):
        for one, same in zip(its.learn_lanes(lanes, rows, dense), alone, strict=True):
            np.testing.assert_array_equal(one.dense, same.dense)


@pytest.mark.parametrize("sizes", [(16,), (16, 32), (15, 15), (128, 128)])
def test_lanes_of_other_sizes_are_learned_one_by_one(sizes: Sequence[int]) -> None:
    its = learner()
    lanes = lanes_of(its, sizes)
    its.model.by_lane = None  # type: ignore[assignment]
    out = its.learn_lanes(lanes, [rows_of(lane) for lane in lanes], its.model.read_dense())
    assert [len(one.probabilities_BL) for one in out] == [*sizes]


@pytest.mark.parametrize(
    ("model", "first"), [("default", {}), ("narrow vectors", {"labels": [0.0, 0.0], "watch_ms": 0})]
)
def test_workers_that_join_lanes_and_others_learn_the_same_bits(
    model: str, first: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of open labels and of final ones, and after a step without positives, which has no gradients of
    vectors."""
    config, log, digests = replace(toy_config(examples=64), model=MODELS[model]), toy_log(), []
    arrived = [[0.5, 0.9] if n < 64 else [] for n in range(384)]
    changes = [first if n < 200 else {} for n in range(384)]
    append_examples(log, [example(n, arrived=arrived[n], **changes[n]) for n in range(384)])
    drain(SequencerLoop(log, config, FEATURES, Clock()))
    for joins in (True, False):
        monkeypatch.setattr(Learner, "may_join_lanes", joins)
        client = fresh_client(config)
        drain(worker(log, client, config))
        assert client.applied_steps() == [6]
        digests.append(digest_of_shards(client.shards))
    assert digests[0] == digests[1]
