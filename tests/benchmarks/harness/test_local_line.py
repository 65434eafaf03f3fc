"""A line in this process: fitted, caught up, distilled into, and taken on by any shard."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from benchmarks.harness.local_line import LocalLine
from benchmarks.studies.drift.merge_variants import losses
from benchmarks.studies.drift.refit import Batch, RefitOptions, export_at_step, refit, student_of
from benchmarks.studies.drift.scenario_log import ScenarioLog
from benchmarks.studies.drift.scenario_stream import Stream, watch
from recsys.config.system_config import Config, ModelConfig, ParameterServerConfig, StepConfig
from recsys.model.list_ranker import lists_of
from recsys.model.model import build_model
from recsys.model.prediction_metrics import auc
from replay.replay_run import ReplayOptions
from training.continual.learner import Lane, Learner
from training.lines.line import spec_of
from training.offline.distill import Distiller, with_teacher

CONFIG = Config(
    step=StepConfig(lanes=1),
    model=ModelConfig(dim=4, hidden=(16,), retrieval_weight=0.0),
    parameter_server=ParameterServerConfig(shards=1, delta_format="fp32"),
)


@cache
def stream() -> Stream:
    log = ScenarioLog(1, 6.0, users=10, items=40, requests_per_s=0.012, story="meaning")
    return watch(log, ReplayOptions(step_examples=64), CONFIG, log.nights())


@cache
def lanes() -> list[Lane]:
    learner = Learner(build_model(stream().features, stream().config.model))
    return [learner.prepare(cut.examples) for cut in stream().cuts]


def line_of(config: Config | None = None, distils: bool = False) -> LocalLine:
    config = config or stream().config
    model = build_model(stream().features, config.model)
    learner = Distiller(model) if distils else Learner(model)
    return LocalLine(learner, spec_of(config), model.read_dense())


def learned(line: LocalLine, some: list[Lane]) -> LocalLine:
    for lane in some:
        line.learn(line.step + 1, [lane])
    return line


def test_it_scores_what_it_predicts_and_an_export_is_all_of_it() -> None:
    line = learned(line_of(), lanes()[:5])
    lane = lanes()[6]
    copy = LocalLine.loaded(line.learner, line.spec, line.export())
    assert copy.step == 5 and copy.shard.digest() == line.shard.digest()
    (told,) = line.learn(9, [lane])
    (same,) = copy.learn(9, [lane])
    assert np.array_equal(told, same) and copy.shard.digest() == line.shard.digest()
    request = stream().requests[7]
    scored = line.score(lists_of([request]))
    assert scored.shape == (len(request.items_NI), told.shape[1]) and (scored > 0).all()
    assert line.predict(lane).shape == told.shape
    with pytest.raises(ValueError, match="parts is 2"):
        LocalLine(line.learner, replace(line.spec, parts=2), told[0])


def test_a_fit_stops_early_and_learns_all() -> None:
    batches = [Batch(n, lane) for n, lane in enumerate(lanes()[:12])]
    fitted = refit(line_of(), batches, RefitOptions(epochs=4, held_out=0.25))
    assert 1 <= fitted.epochs <= 4 and fitted.line.step == 12 * fitted.epochs
    assert fitted.losses[fitted.epochs - 1] == min(fitted.losses)
    assert len(fitted.losses) == min(4, fitted.epochs + 1)
    again = refit(line_of(), batches, RefitOptions(epochs=4, held_out=0.25))
    assert again.line.shard.digest() == fitted.line.shard.digest()
    with pytest.raises(ValueError, match="2 or more"):
        refit(line_of(), batches[:1], RefitOptions())
    with pytest.raises(ValueError, match="epochs is 0"):
        RefitOptions(epochs=0)


def test_a_catch_up_begins_where_the_offline_model_ended_and_predicts_first() -> None:
    offline = learned(line_of(), lanes()[:8] * 2)
    line = LocalLine.loaded(offline.learner, offline.spec, export_at_step(offline.export(), 8))
    expected = line.predict(lanes()[8])
    told = [line.learn(n, [lane], {}) for n, lane in enumerate(lanes()[8:11])]
    assert line.step == 11 and len(told) == 3
    assert np.allclose(told[0][0], expected, atol=0.05)  # served are averages of the dense ones
    user = int(lanes()[8].batch.user_B[0])
    line.learn(99, [lanes()[1]], {"features": np.array([user])})
    assert user not in line.export()[0]["table/features/keys"]


def test_a_student_learns_what_its_teacher_says() -> None:
    half = len(lanes()) // 2
    teacher = learned(line_of(), lanes()[:half] * 2)
    small = student_of(stream().config)
    assert small.model.dim < 8 and small.parameter_server.delta_format == "int8"
    student, alone = line_of(small, distils=True), line_of(small)
    assert student.shard.nbytes < teacher.shard.nbytes
    for lane in lanes()[:half]:
        student.learn(1, [with_teacher(lane, teacher.predict(lane))])
    learned(alone, lanes()[:half])
    late = lanes()[half:]
    far = [
        np.mean(
            [np.abs(line.predict(lane)[:, 0] - teacher.predict(lane)[:, 0]).mean() for lane in late]
        )
        for line in (student, alone)
    ]
    assert far[0] < far[1]
    labels = np.concatenate([lane.labels_BK[:, 0] for lane in late])
    scores = np.concatenate([student.predict(lane)[:, 0] for lane in late])
    assert auc(scores, labels) > 0.5 and np.isfinite(losses(scores, labels)).all()
    with pytest.raises(ValueError, match="the teacher's probabilities are"):
        with_teacher(lanes()[0], np.zeros((1, 1), np.float32))


def test_a_distiller_without_a_teacher_is_a_learner() -> None:
    one, other = learned(line_of(), lanes()[:3]), learned(line_of(distils=True), lanes()[:3])
    assert one.shard.digest() == other.shard.digest()
