"""Sides of a replica: made when their line has a snapshot; one that fails is tried again after a while."""

import asyncio
import time
from pathlib import Path

import pytest

from benchmarks.harness.local_system import small_config
from recsys.events.records import topics
from recsys.features.feature_set_file import feature_set
from recsys.log.protocol import MemoryLog
from serving.variants.model_variant import ModelVariant
from serving.variants.model_variants import ModelVariants


def variants_in(folder: Path) -> ModelVariants:
    config, log = small_config(folder), MemoryLog()
    for topic in topics(config.log.partitions):
        log.create(topic)
    live = ModelVariant(config, log, feature_set(config), lambda: 0)
    return ModelVariants(log, live, lambda: 0)


async def wanted(variants: ModelVariants, for_s: float) -> None:
    """Requests that want one line, a hundred a second."""
    variants.start(asyncio.get_running_loop())
    until = time.monotonic() + for_s
    while time.monotonic() < until:
        variants.set_wanted(["e.a"])
        await asyncio.sleep(0.01)
    await variants.stop()


def test_a_line_without_a_snapshot_has_no_side(tmp_path: Path) -> None:
    variants = variants_in(tmp_path)
    variants.set_wanted(["e.a"])
    assert variants.get("e.a") is None and not variants.all


def test_what_fails_is_not_made_anew_at_each_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr("serving.variants.model_variants.snapshots.complete_steps", lambda *_: [1])
    variants = variants_in(tmp_path)
    monkeypatch.setattr("serving.variants.model_variant.Replica", lambda *_: made.append(1) or 1 / 0)

    asyncio.run(wanted(variants, 1.0))
    assert len(made) == 1


def test_one_whose_thread_failed_waits_before_it_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    class Failing:
        def __init__(self, *_: object) -> None:
            made.append(1)
            self.failure = "its snapshot can't be read"

        def start(self, _: object) -> None: ...

        def stop(self) -> None: ...

    monkeypatch.setattr("serving.variants.model_variants.snapshots.complete_steps", lambda *_: [1])
    variants = variants_in(tmp_path)
    monkeypatch.setattr("serving.variants.model_variant.FollowerThread", Failing)

    asyncio.run(wanted(variants, 2.0))
    assert len(made) == 1
