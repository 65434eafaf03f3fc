"""Merging a candidate with live: from one snapshot of it, judged like any other, else refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from experiments.promotion.lifecycle import Lifecycle
from parameter_server.storage import snapshots
from parameter_server.storage.snapshots import Snapshot
from recsys.config.system_config import digest
from recsys.events.control_records import Live
from recsys.events.event_types import User
from recsys.events.hashing import key_of
from recsys.model.choice_model import choice_size
from tests.support.training.promotion_run import PromotionRun, TrainedCandidate, config_of
from training.candidates.registry import Provenance, Refused, plain_config, reference_to
from training.lines.line import MAIN
from training.merging.merge import Blend, Blends
from training.merging.merge_live import LiveMerge

pytestmark = [pytest.mark.slow, pytest.mark.steady]
HALF = Blends(Blend(0.5, 0.5), 0.5)


async def run_of(folder: Path, lists: int = 40) -> PromotionRun:
    run = PromotionRun(config_of(folder))
    await run.start()
    await run.show(lists)
    return run


def own(run: PromotionRun) -> Path:
    return Path(run.config.state) / "snapshots"


def add(run: PromotionRun, name: str, made: TrainedCandidate, ancestor: Snapshot | None) -> None:
    """An offline candidate as a job adds it."""
    said = {
        "name": name, "kind": "offline", "feature_set": run.system.features.digest,
        "model": digest(run.config.model), "config": plain_config(run.config.model), "code": "",
        "made_ms": run.system.now_ms, "from_ms": 0, "until_ms": run.system.now_ms,
        "log_id": run.system.log.id, "offsets": made.offsets,
        "ancestor": reference_to(ancestor) if ancestor else None,
    }  # fmt: skip
    folder = None
    if ancestor is not None:  # as the job's own copy stands
        folder = Path(run.config.state) / f"job-{name}"
        (folder / MAIN).mkdir(parents=True)
        (folder / MAIN / ancestor.folder.name).symlink_to(ancestor.folder)
    run.registry.add(Provenance(**said), made.arrays, made.meta, made.meta["step"], folder)


class Made(NamedTuple):
    provenance: Provenance
    arrays: dict[str, Any]
    step: int


def merged_of(
    run: PromotionRun, name: str = "cand-1", blends: Blends = HALF, lives: list[Live] | None = None
) -> tuple[LiveMerge, Made]:
    lifecycle = Lifecycle(lives=run.lifecycle.lives if lives is None else lives)
    live = LiveMerge(run.system.log, run.config, run.system.features, lifecycle, run.system.now_ms)
    live.merge(run.registry, name, blends, "merged-1")
    snapshot = run.registry.snapshot("merged-1")
    return live, Made(run.registry.provenance("merged-1"), snapshot.read(0), snapshot.step)


async def family(folder: Path, epochs: int = 2) -> tuple[PromotionRun, Snapshot]:
    """A system that went on from a snapshot, and a candidate that began from the same."""
    run = await run_of(folder)
    ancestor = snapshots.latest(own(run), MAIN, 0).snapshot
    assert ancestor is not None and ancestor.step > 0
    add(run, "cand-1", run.trained(epochs, began=ancestor), ancestor)
    await run.show(30)
    return run, ancestor


async def test_it_stands_where_live_does_with_weights_between_both(tmp_path: Path) -> None:
    run, ancestor = await family(tmp_path)
    live, made = merged_of(run)
    assert made.step == live.live.step > ancestor.step
    its = made.provenance
    assert its.kind == "merged" and its.ancestor == reference_to(ancestor)
    assert its.parents == [reference_to(live.live), reference_to(run.registry.snapshot("cand-1"))]
    assert its.metrics["merge.dense"] == 0.5
    before_ms = run.registry.provenance("cand-1").until_ms
    assert before_ms < its.until_ms < run.system.now_ms  # the newest example's time, and 1 ms
    online = live.live.read(0, lambda name: name == "dense/values")["dense/values"]
    offline = run.registry.snapshot("cand-1").read(0)["dense/values"]
    network = len(online) - choice_size(run.system.features)
    values, middle = made.arrays["dense/values"], (online + offline) / 2
    assert values[:network] == pytest.approx(middle[:network], abs=1e-6)
    assert np.array_equal(values[network:], online[network:])  # the choice model is live's
    # Learning goes on with the first example that live hadn't learned then.
    ends = {}
    for step in run.steps():
        if step.step <= made.step:
            ends |= {part.partition: part.stop for part in step.ranges}
    assert its.offsets == ends
    await run.system.stop()


async def test_a_row_is_nearer_to_live_the_more_examples_used_it(tmp_path: Path) -> None:
    run, _ancestor = await family(tmp_path)
    live, made = merged_of(run, blends=Blends(Blend(0.0, 1.0, 5.0), 0.5))
    uses = dict(zip(*live._since(live._steps_since(made.provenance.ancestor)).uses["features"], strict=True))
    lived = live._export(live.live).arrays
    cand = run.registry.snapshot("cand-1").read(0)
    at = {k: n for n, k in enumerate(lived["table/features/keys"].tolist())}
    to = {k: n for n, k in enumerate(cand["table/features/keys"].tolist())}
    seen = set()
    for key, value in zip(
        made.arrays["table/features/keys"].tolist(), made.arrays["table/features/values"], strict=True
    ):
        if key in at and key in to:
            used = uses.get(key, 0)
            share = used / (used + 5)
            a, b = (cand["table/features/values"][to[key]], lived["table/features/values"][at[key]])
            assert value == pytest.approx(a + share * (b - a), abs=1e-6)
            seen.add(used > 0)
    assert seen == {True, False}
    await run.system.stop()


async def test_who_was_forgotten_meanwhile_does_not_come_back(tmp_path: Path) -> None:
    run = await run_of(tmp_path)
    ancestor = snapshots.latest(own(run), MAIN, 0).snapshot
    user = "who came later"
    run.viewers.user = lambda number: user if number % 3 == 0 else f"u{number % 40}"
    await run.show(10)
    add(run, "cand-1", run.trained(1, began=ancestor), ancestor)
    run.system.profile(User(user_id=user, time_ms=run.system.now_ms, removed=True))
    run.viewers.user = lambda number: f"u{number % 40}"
    await run.show(40)
    key = key_of("user", user)
    live, made = merged_of(run)
    assert key in live._since(live._steps_since(made.provenance.ancestor)).removed["users"]
    for table in ("features", "users"):
        keys = f"table/{table}/keys"
        assert key in run.registry.snapshot("cand-1").read(0)[keys]
        assert key not in live.live.read(0)[keys] and key not in made.arrays[keys]
    await run.system.stop()


async def test_it_is_judged_and_takes_over_like_any_other(tmp_path: Path) -> None:
    run, _ = await family(tmp_path, epochs=8)
    merged_of(run, blends=Blends(Blend(0.2, 0.2), 0.2))
    run.ask_for("merged-1")
    for _ in range(100):
        await run.show(5)
        if run.lifecycle.candidates["merged-1"].stage == "live":
            break
    assert run.lifecycle.live.candidate == "merged-1"
    step = run.system.worker.step
    await run.show(10)
    assert run.system.worker.step > step
    await run.system.stop()


async def test_what_has_nothing_in_common_is_refused(tmp_path: Path) -> None:
    run, ancestor = await family(tmp_path)
    made = run.trained(1)
    add(run, "fresh", made, None)
    with pytest.raises(Refused, match="began from initial values.*--init"):
        merged_of(run, "fresh")
    add(run, "other", made, replace(ancestor, line="cand-9"))
    with pytest.raises(Refused, match="cand-9.*isn't of the live line"):
        merged_of(run, "other")
    lives = run.lifecycle.lives
    newest = snapshots.latest(own(run), MAIN, 0).snapshot
    snapshots.adopt(own(run), MAIN, (0, newest.step), 1)
    took = Live(line=MAIN, epoch=1, base_step=newest.step, parent_epoch=0, candidate="cand-7")
    with pytest.raises(Refused, match="cand-7 took the place of live's weights in epoch 1"):
        merged_of(run, lives=[*lives, took])
    snapshots.adopt(own(run), MAIN, (0, newest.step), 2)
    back = Live(line=MAIN, epoch=2, base_step=ancestor.step - 1, parent_epoch=0)
    with pytest.raises(Refused, match=f"took back to step {ancestor.step - 1}"):
        merged_of(run, lives=[*lives, took, back])
    await run.system.stop()


async def test_a_candidate_that_knows_more_than_lives_snapshot_waits(tmp_path: Path) -> None:
    run = await run_of(tmp_path)
    ancestor = snapshots.latest(own(run), MAIN, 0).snapshot
    made = run.trained(1, began=ancestor)
    offsets = {p: offset + 1000 for p, offset in made.offsets.items()}
    add(run, "cand-1", made._replace(offsets=offsets), ancestor)
    with pytest.raises(Refused, match="has learned what came after that.*wait for the next snapshot"):
        merged_of(run)
    await run.system.stop()


async def test_a_changed_ancestor_is_found(tmp_path: Path) -> None:
    run, ancestor = await family(tmp_path)
    kept = run.registry.ancestor("cand-1")
    for file in kept.folder.rglob("*.safetensors"):
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.unlink()  # the link goes, the snapshot of live stays
        file.write_bytes(content)
    with pytest.raises(Refused, match="ancestor of candidate cand-1 is corrupt"):
        merged_of(run)
    assert np.isfinite(ancestor.step)
    await run.system.stop()
