from dataclasses import replace
from functools import cache
from pathlib import Path
from shutil import copytree, rmtree
from typing import Any

import numpy as np
import pytest

from parameter_server.shard.shard import Shard, ShardSpec
from parameter_server.storage.snapshots import latest, write_part
from recsys.config.system_config import tables_of
from tests.support.training.offline_examples import FOUR, MODEL, MemoryCheckpoints, toy_blocks, toy_trainer
from tests.support.training.offline_workers import together
from training.offline import job
from training.offline.initial_state import export_meta
from training.offline.job import FileCheckpoints
from training.offline.loop import BEST, DONE, LAST, WORK, LoopState, OfflineLoop, Plan, scores
from training.offline.sharding import Sharding
from training.offline.trainer import OfflineTrainer

PLAN = Plan(last=3, epochs=2, step_examples=8, checkpoint_every=2)
FOUR_EPOCHS = Plan(last=3, epochs=8, step_examples=8)  # the third is the best


def run(plan: Plan = PLAN, **changes: Any) -> tuple[OfflineLoop, OfflineTrainer, dict[str, float]]:
    blocks = toy_blocks()
    trainer = toy_trainer(blocks, **changes)
    loop = OfflineLoop(blocks, trainer, MemoryCheckpoints(), plan)
    return loop, trainer, loop.run()


@cache
def whole() -> tuple[OfflineLoop, OfflineTrainer, dict[str, float]]:
    """The run that others are compared with."""
    return run()


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def test_all_examples_are_learned_as_often_as_the_best_epoch_says() -> None:
    loop, _, metrics = whole()
    best = loop.state.best
    assert loop.state.stage == DONE and 1 <= best <= 2
    epochs = len(loop.state.judged)
    assert loop.state.learned == 72 * epochs + 24 * best
    assert metrics["last_day.log_loss"] == min(
        metrics[f"epoch_{epoch}.log_loss"] for epoch in range(1, epochs + 1)
    )
    assert metrics["last_day.examples"] == metrics["prequential.examples"] == 24
    assert 0.3 < metrics["first_epoch.log_loss"] < 1.5


def test_the_epoch_before_is_taken_again_where_the_last_day_gets_worse() -> None:
    """By hand: as many epochs as were best, and no more, give the same rows."""
    loop, trainer, _metrics = run(Plan(last=3, epochs=8, step_examples=8))
    best = loop.state.best
    assert best < len(loop.state.judged), "the small feed is learned by heart in a few epochs"
    _, fewer, _ = run(Plan(last=3, epochs=best, step_examples=8))
    assert same(trainer.export(), fewer.export())


def test_killed_anywhere_it_ends_with_the_same_bits() -> None:
    _, unhurt, expected = whole()
    blocks, files = toy_blocks(), MemoryCheckpoints(fails_at=tuple(range(1, 30, 4)))
    kills = 0
    for _ in range(60):
        trainer = toy_trainer(blocks)
        steps = 0

        def tell(*_: object) -> None:
            nonlocal steps
            steps += 1
            if steps == 5:  # between two checkpoints, too
                raise KeyboardInterrupt

        try:
            metrics = OfflineLoop(blocks, trainer, files, PLAN, tell).run()
            break
        except KeyboardInterrupt:
            kills += 1
    assert kills > 5 and metrics == expected
    assert same(trainer.export(), unhurt.export())


def in_files(folder: Path, sharding: Sharding = FOUR) -> tuple[OfflineTrainer, dict[str, float]]:
    blocks = toy_blocks()
    trainer = toy_trainer(blocks, sharding=sharding)
    files = FileCheckpoints(folder, sharding)
    return trainer, OfflineLoop(blocks, trainer, files, FOUR_EPOCHS).run()


@cache
def four_epochs() -> tuple[OfflineTrainer, dict[str, float]]:
    loop, trainer, metrics = run(FOUR_EPOCHS)
    assert (loop.state.best, len(loop.state.judged)) == (3, 4)
    return trainer, metrics


@pytest.mark.parametrize("last", range(4))
def test_killed_between_parts_of_the_restored_epoch_it_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: int
) -> None:
    """The step was saved before, with the rows of the worse epoch after it."""

    def dies(*args: Any) -> Path:
        written = write_part(*args)
        _, kind, _, _, part, _, _, meta = args
        if (kind, part) == (WORK, last) and f'"stage":"{LAST}"' in meta["state"]:
            raise KeyboardInterrupt
        return written

    unhurt, expected = four_epochs()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(job, "write_part", dies)
        in_files(tmp_path)
    trainer, metrics = in_files(tmp_path)
    assert metrics == expected and same(trainer.export(), unhurt.export())


@pytest.mark.parametrize("damaged", [(0,), (0, 1)])
def test_without_the_checkpoint_of_the_best_epoch_all_workers_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: tuple[int, ...]
) -> None:
    """The one of an epoch before isn't taken in its place."""
    real = FileCheckpoints.newest

    def work(sharding: Sharding) -> str:
        with pytest.raises(RuntimeError, match="best epoch, 3, is missing or damaged") as raised:
            in_files(tmp_path, sharding)
        return str(raised.value)

    def newest(self: FileCheckpoints, kind: str) -> Any:
        if kind == BEST and self._sharding.rank in damaged:
            folder = tmp_path / f"without-{self._sharding.rank}"
            copytree(tmp_path / BEST, folder / BEST)
            rmtree(max((folder / BEST).glob("0*")) / "part-00002-of-00004")
            return real(FileCheckpoints(folder, self._sharding), kind)
        return real(self, kind)

    monkeypatch.setattr(FileCheckpoints, "newest", newest)
    found = together(2, work)
    epochs = ["2" if rank in damaged else "3" for rank in range(2)]
    assert all(f"workers see {epochs}" in text for text in found)
    assert all("remove parts/" in text for text in found)


def test_neither_checkpoints_nor_their_number_change_a_bit() -> None:
    _, trainer, metrics = whole()
    _, other, others = run(Plan(last=3, epochs=2, step_examples=8, checkpoint_every=1_000))
    assert same(trainer.export(), other.export()) and metrics == others


@pytest.mark.parametrize("workers", [2, 3, 4, 5])
def test_each_row_is_in_one_worker_and_their_number_changes_no_bit(workers: int) -> None:
    _, one, expected = whole()
    blocks = toy_blocks()

    def work(sharding: Sharding) -> tuple[OfflineTrainer, dict[str, float]]:
        trainer = toy_trainer(blocks, sharding=sharding)
        return trainer, OfflineLoop(blocks, trainer, MemoryCheckpoints(), PLAN).run()

    found = together(workers, work)
    assert all(metrics == expected for _, metrics in found)
    exports = [trainer.export() for trainer, _ in found]
    for name, array in one.export().items():
        if name.startswith("dense/"):
            assert all(np.array_equal(export[name], array) for export in exports)
            continue
        table = name.rpartition("/")[0]
        keys = np.concatenate([export[f"{table}/keys"] for export in exports])
        column = np.concatenate([export[name] for export in exports])
        assert np.array_equal(column[np.argsort(keys)], array) and len(keys) == len(array)
    lengths = [len(export["table/features/keys"]) for export in exports]
    assert min(lengths[:4]) > 0 and lengths[4:] == [0] * (workers - 4)


def test_workers_without_a_checkpoint_in_common_stop() -> None:
    blocks, kept = toy_blocks(), MemoryCheckpoints(fails_at=(3,))
    with pytest.raises(KeyboardInterrupt):
        OfflineLoop(blocks, toy_trainer(blocks), kept, PLAN).run()

    def work(sharding: Sharding) -> None:
        files = kept if sharding.rank else MemoryCheckpoints()
        with pytest.raises(RuntimeError, match="see different checkpoints"):
            OfflineLoop(blocks, toy_trainer(blocks, sharding=sharding), files, PLAN).run()

    together(2, work)


def test_it_is_an_export_that_a_shard_goes_on_from(tmp_path: Path) -> None:
    loop, trainer, _ = whole()
    arrays = trainer.export()
    for part in range(4):
        write_part(tmp_path, "work", 0, loop.state.steps, part, 4, trainer.export(part), {})
    snapshot = latest(tmp_path, "work").snapshot
    assert snapshot is not None
    meta = export_meta(snapshot, 0, 0, "fp32")
    shard = Shard(ShardSpec(tables_of(MODEL), lanes=4), arrays["dense/values"])
    shard.load([arrays], meta)
    out, its = shard.export()
    assert its.items() >= meta.items() and shard.applied == loop.state.steps
    order = np.argsort(out["table/users/keys"])
    for column in ("keys", "values", "accumulator", "used_ms"):
        name = f"table/users/{column}"
        assert np.array_equal(out[name][order], arrays[name])
    assert {name for name in out if not name.startswith("held/")} == set(arrays)


@pytest.mark.slow
def test_torchrec_tables_learn_what_our_own_learn() -> None:
    from training.offline.torchrec_tables import TorchrecTable

    _, ours, metrics = whole()
    _, theirs, others = run(made=TorchrecTable)
    mine, other = ours.export(), theirs.export()
    for name in mine:
        scale = np.abs(mine[name]).max()
        assert np.abs(mine[name] - other[name]).max() <= 1e-5 * scale, name
    assert metrics.keys() == others.keys()
    assert abs(metrics["last_day.log_loss"] - others["last_day.log_loss"]) < 1e-5


def test_labels_that_are_sampled_count_for_those_left_out() -> None:
    p = np.array([0.2, 0.8], np.float32)
    y, weights = np.array([0, 1], np.float32), np.array([4, 1], np.float32)
    found = scores(p, y, weights)
    assert found["log_loss"] == pytest.approx(-np.log(0.8))
    assert found["calibration"] == pytest.approx(4 * 0.2 + 0.8)


def test_a_job_resumes_with_metrics_that_are_not_finite() -> None:
    blocks = replace(toy_blocks(), blocks=list(toy_blocks().blocks))
    last = blocks.blocks[-1]
    blocks.blocks[-1] = replace(last, labels=np.zeros_like(last.labels))  # no AUC, no calibration

    def run_from(files: MemoryCheckpoints, stops_at: int) -> dict[str, float]:
        def tell(state: LoopState, _: object) -> None:
            state.sums[state.stage]["loss.long_view"] = np.nan
            if state.steps == stops_at:
                raise KeyboardInterrupt

        return OfflineLoop(blocks, toy_trainer(blocks), files, PLAN, tell).run()

    files, expected = MemoryCheckpoints(), run_from(MemoryCheckpoints(), 0)
    with pytest.raises(KeyboardInterrupt):
        run_from(files, 14)  # in the second epoch
    assert b"null" in files.saved[WORK][1]
    assert run_from(files, 0) == expected
    assert "last_day.log_loss" in expected and "last_day.calibration" not in expected


@pytest.mark.parametrize(("last", "which"), [(0, "before the last day"), (4, "on the last day")])
def test_without_examples_on_either_side_of_the_last_day_nothing_is_said(last: int, which: str) -> None:
    blocks = toy_blocks()
    plan = Plan(last=last)
    with pytest.raises(ValueError, match=which):
        OfflineLoop(blocks, toy_trainer(blocks), MemoryCheckpoints(), plan)


def test_a_resume_of_other_rows_is_refused() -> None:
    blocks = toy_blocks()
    arrays = toy_trainer(blocks).export()
    other = toy_trainer(replace(blocks, blocks=blocks.blocks[:1]))
    with pytest.raises(ValueError, match="another vocabulary"):
        other.load(arrays)
