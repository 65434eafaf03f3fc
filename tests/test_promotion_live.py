"""A candidate takes over a system that runs, and is taken back, while a client asks all along: one like live,
and a student whose model is half as large."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.epoch_model import sized
from parameter_server import snapshots
from parameter_server.durable import load_shard
from parameter_server.shard import Shard
from recsys.blueprint import build_model, feature_set
from recsys.cli.shadow import propose, rollback
from recsys.client import ApiError
from recsys.config import digest
from recsys.consumer import readable
from recsys.log import Append, Log
from recsys.open_log import open_log
from recsys.promotion_config import PromotionConfig
from recsys.records import (
    CONTROL,
    SCORES,
    STEPS,
    Decision,
    Live,
    ModelSize,
    Scores,
    Step,
    pack,
)
from tests.live_system import LiveSystem, Traffic
from tests.test_promotion_loop import never_back
from training.candidates.affected import file_of
from training.candidates.registry import Provenance, Registry, plain_config
from training.candidates.shadow import Shadow
from training.control import ControlReader
from training.line import MAIN, spec_of

pytestmark = [pytest.mark.services, pytest.mark.slow, pytest.mark.timeout(600)]

NAME = "cand-1"
SEEN_WITHIN_S = 5.0
# It is like live, so nothing is known of it; it is made canary by hand, and these let it go on from there.
RULES = PromotionConfig(
    share=1.0, canary_examples=30, settle_s=3.0, loss_margin=10, auc_margin=1, segment_margin=10,
    recall_margin=1, canary_margin=1, engagement_margin=1, score_shift=10, score_spread=100, latency=100,
    concentration=100, degraded=1,
)  # fmt: skip


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


@pytest.mark.parametrize("size", [None, ModelSize(8, (64, 32))], ids=["like live", "student"])
def test_a_candidate_goes_live_and_back_under_traffic(
    tmp_path: Path, size: ModelSize | None
) -> None:
    system = LiveSystem(tmp_path / "state")
    system._config = replace(
        system._config, promotion=RULES, step=replace(system._config.step, snapshot_every=20)
    )
    try:
        system.up()
        system.publish_world()
        system.wait_ready(180)
        log = open_log(system.config)
        traffic, asker = Traffic(system), Asker(system)
        until(lambda: newest(log, 0) >= 10, 120, "steps are cut")
        register(system, log, size)
        propose(NAME, state=system.state)
        until(lambda: any(readable(log, SCORES, Scores)), 60, "the candidate is scored")
        made_canary = Decision(line=NAME, said="promote", to="canary", share=0.5)
        log.append(CONTROL, [Append(0, b"", pack(made_canary))])
        until(lambda: answering(asker)[0] == NAME, 60, "the canary answers")

        until(lambda: live(log).epoch == 1, 90, "it takes over")
        assert (live(log).candidate, live(log).size) == (NAME, size)
        until(lambda: answering(asker)[:2] == (MAIN, 1), 60, "the new epoch answers")
        until(
            lambda: answering(asker)[2] > live(log).since + 2,
            90,
            "the new epoch learns, and is served",
        )

        asked_s, before = time.monotonic(), len(asker.stamps)
        asking = threading.Thread(target=rollback, args=("", "a test", system.state))
        asking.start()  # it stays until whom it answered is listed
        until(lambda: answering(asker)[:2] == (MAIN, 2), 60, "what is left answers no more")
        seen_s = time.monotonic() - asked_s
        since = [its[:2] for its in asker.stamps[before:]]
        assert (MAIN, 1) not in since[since.index((MAIN, 2)) :]
        until(
            lambda: answering(asker)[2] > live(log).since + 2,
            90,
            "the third epoch learns, and is served",
        )

        asking.join(60)
        assert file_of(system.state, "main/1").exists()
        asker.stop()
        traffic.stop()
        print(f"rolled back in {seen_s:.2f} s, {len(asker.stamps)} answers")
        assert asker.failures == [] and traffic.failures == 0
        assert never_back(asker.stamps)
        assert seen_s < SEEN_WITHIN_S
        assert {its[:2] for its in asker.stamps} <= {(MAIN, 0), (NAME, 0), (MAIN, 1), (MAIN, 2)}
        log.close()
    finally:
        system.down()


def register(system: LiveSystem, log: Log, size: ModelSize | None) -> None:
    """A candidate: live's newest snapshot; or, of another size, one that has learned the same steps."""
    config, features = sized(system.config, size), feature_set(system.config)
    folder = system.state / "snapshots"
    until(lambda: snapshots.latest(folder, MAIN).snapshot, 60, "there is a snapshot")
    snapshot = snapshots.latest(folder, MAIN).snapshot
    assert snapshot is not None
    one = replace(config, parameter_server=replace(config.parameter_server, shards=1))
    shard = Shard(spec_of(one, NAME), build_model(features, config.model).read_dense())
    if size is None:
        load_shard(shard, snapshot)
    else:
        student = Shadow(log, config, features, NAME, shard, [Live(line=MAIN, epoch=0)])
        while student.step < snapshot.step:
            assert student.turn(scores=False) is not None
    offsets = {
        its.partition: its.stop
        for step in readable(log, STEPS, Step)
        if step.step <= snapshot.step
        for its in step.ranges
    }
    now_ms = time.time_ns() // 1_000_000
    about = Provenance(
        name=NAME, kind="offline" if size is None else "student", feature_set=features.digest,
        model=digest(config.model), config=plain_config(config.model), code="", made_ms=now_ms,
        from_ms=0, until_ms=now_ms, log_id=log.id, offsets=offsets,
    )  # fmt: skip
    arrays, meta = shard.export()
    Registry(system.state / "registry").add(about, arrays, meta, snapshot.step)


def live(log: Log) -> Live:
    control = ControlReader(log)
    control.turn()
    assert control.lifecycle.live is not None
    return control.lifecycle.live


def newest(log: Log, epoch: int) -> int:
    return max((s.step for s in readable(log, STEPS, Step) if s.epoch == epoch), default=0)


def answering(asker: Asker) -> tuple[str, int, int]:
    return asker.stamps[-1] if asker.stamps else ("", 0, 0)


def until(true: Callable[[], object], timeout_s: float, what: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, f"not in {timeout_s} s: {what}"
        time.sleep(0.05)
