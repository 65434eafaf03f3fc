"""A candidate takes over a system that runs, and is taken back, while a client asks all along: one like live,
and a student whose model is half as large."""

import threading
import time

import pytest

from experiments.promotion.epoch_model import with_size
from experiments.promotion.lifecycle import Lifecycle
from parameter_server.shard.shard import Shard
from parameter_server.storage import snapshots
from parameter_server.storage.durable_shard import load_shard
from recsys.client import ApiError
from recsys.config.system_config import digest
from recsys.events.control_records import Decision, Live, ModelSize
from recsys.events.records import CONTROL, DELTAS, SCORES, STEPS, Delta, Scores, Step, pack
from recsys.features.feature_set_file import feature_set
from recsys.log.protocol import Append, Log
from recsys.model.model import build_model
from recsys.process.log_consumer import readable
from recsys.process.open_log import open_log
from runtime.cli.candidates import propose, rollback
from tests.support.systems.live_system import LiveSystem, Traffic, until
from tests.support.training.promotion_run import never_back
from training.candidates.registry import Provenance, Registry, plain_config
from training.candidates.rollback_impact import impact_file
from training.candidates.shadow import Shadow
from training.continual.learner import Learner
from training.lines.control import ControlReader
from training.lines.line import MAIN, whole_spec
from training.steps.lineage import Lineage

pytestmark = [pytest.mark.services, pytest.mark.slow, pytest.mark.timeout(600)]

LIKE_LIVE, STUDENT = "cand-1", "student-1"
SIZE = ModelSize(dim=8, hidden=(64, 32))
SEEN_WITHIN_S = 10.0


class Asker:
    """One client that asks twenty times a second, and writes down what each answer was made from."""

    def __init__(self, system: LiveSystem) -> None:
        self._system, self._stop = system, threading.Event()
        self.stamps: list[tuple[str, int, int]] = []
        self.failures: list[str] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(60)

    def _run(self) -> None:
        with self._system.client() as client:
            while not self._stop.wait(0.05):
                try:
                    stamp = client.recommend(f"a{len(self.stamps) % 20}", 3).stamp
                except ApiError as error:
                    self.failures.append(str(error))
                    continue
                assert stamp is not None
                self.stamps.append((stamp.line, stamp.epoch, stamp.step))


def test_candidates_go_live_and_back_under_traffic(system: LiveSystem) -> None:
    log = open_log(system.config)
    traffic, asker = Traffic(system), Asker(system)
    try:
        until(lambda: newest(log, 0) >= 10, 120, "steps are cut")
        there_and_back(system, log, asker, LIKE_LIVE, None, 1)
        there_and_back(system, log, asker, STUDENT, SIZE, 3)
    finally:
        asker.stop()
        traffic.stop()
    assert asker.failures == [] and traffic.failures == 0
    assert never_back(asker.stamps)
    lines = [(MAIN, 0), (LIKE_LIVE, 0), (MAIN, 1), (MAIN, 2), (STUDENT, 0), (MAIN, 3)]
    assert {stamp[:2] for stamp in asker.stamps} <= {*lines, (MAIN, 4)}
    assert dims(log, 3) == {SIZE.dim} and dims(log, 4) == {system.config.model.dim}
    log.close()


def there_and_back(
    system: LiveSystem, log: Log, asker: Asker, name: str, size: ModelSize | None, epoch: int
) -> None:
    """A candidate is made canary, becomes live as ``epoch``, and is taken back."""
    register(system, log, name, size)
    propose(name, state=system.state)
    until(lambda: scored(log, name), 120, "the candidate is scored")
    made_canary = Decision(line=name, verdict="promote", to="canary", share=0.5)
    log.append(CONTROL, [Append(0, b"", pack(made_canary))])
    until(lambda: answering(asker)[0] == name, 60, "the canary answers")

    until(lambda: live(log).epoch == epoch, 90, "it takes over")
    assert (live(log).candidate, live(log).size) == (name, size)
    until(lambda: answering(asker)[:2] == (MAIN, epoch), 60, "the new epoch answers")
    learns = "the epoch learns, and is served"
    until(lambda: answering(asker)[2] > live(log).base_step + 2, 90, learns)

    asked_s, before, back = time.monotonic(), len(asker.stamps), epoch + 1
    asking = threading.Thread(target=rollback, args=("", "a test", system.state))
    asking.start()  # it stays until whom it answered is listed
    until(lambda: answering(asker)[:2] == (MAIN, back), 60, "what is left answers no more")
    seen_s = time.monotonic() - asked_s
    since = [its[:2] for its in asker.stamps[before:]]
    assert (MAIN, epoch) not in since[since.index((MAIN, back)) :]
    assert (live(log).parent_epoch, live(log).size) == (epoch - 1, None)
    until(lambda: answering(asker)[2] > live(log).base_step + 2, 90, learns)

    asking.join(60)
    assert impact_file(system.state, f"main/{epoch}").exists()
    print(f"{name} rolled back in {seen_s:.2f} s, {len(asker.stamps)} answers")
    assert seen_s < SEEN_WITHIN_S


def register(system: LiveSystem, log: Log, name: str, size: ModelSize | None) -> None:
    """A candidate: live's newest snapshot; or, of another size, one that has learned the steps so far."""
    config, features = with_size(system.config, size), feature_set(system.config)
    folder = system.state / "snapshots"
    until(lambda: snapshots.latest(folder, MAIN).snapshot, 60, "there is a snapshot")
    snapshot = snapshots.latest(folder, MAIN).snapshot
    assert snapshot is not None
    shard = Shard(whole_spec(config, name), build_model(features, config.model).read_dense())
    lives = lifecycle(log).lives
    if size is None:
        load_shard(shard, snapshot)
    else:
        learner = Learner(build_model(features, config.model))
        student = Shadow(log, config, learner, name, shard, lives)
        while student.turn(scores=False) is not None:
            pass
    offsets, lineage = dict[int, int](), Lineage(log, MAIN, lives)
    for number in range(1, shard.applied + 1):
        step = lineage.record(number)
        assert step is not None
        offsets |= {its.partition: its.stop for its in step.ranges}
    now_ms = time.time_ns() // 1_000_000
    about = Provenance(
        name=name, kind="offline" if size is None else "student", feature_set=features.digest,
        model=digest(config.model), config=plain_config(config.model), code="", made_ms=now_ms,
        from_ms=0, until_ms=now_ms, log_id=log.id, offsets=offsets,
    )  # fmt: skip
    arrays, meta = shard.export()
    Registry(system.state / "registry").add(about, arrays, meta, shard.applied)


def lifecycle(log: Log) -> Lifecycle:
    control = ControlReader(log)
    control.turn()
    return control.lifecycle


def live(log: Log) -> Live:
    its = lifecycle(log).live
    assert its is not None
    return its


def scored(log: Log, name: str) -> bool:
    return any(said.line == name for said in readable(log, SCORES, Scores))


def dims(log: Log, epoch: int) -> set[int]:
    """Of the features' rows that shards published in an epoch of the live line."""
    deltas = [d for d in readable(log, DELTAS, Delta) if (d.line, d.epoch) == (MAIN, epoch)]
    return {rows.dim - 1 for d in deltas for rows in d.tables if rows.table == "features"}


def newest(log: Log, epoch: int) -> int:
    return max((s.step for s in readable(log, STEPS, Step) if s.epoch == epoch), default=0)


def answering(asker: Asker) -> tuple[str, int, int]:
    return asker.stamps[-1] if asker.stamps else ("", 0, 0)
