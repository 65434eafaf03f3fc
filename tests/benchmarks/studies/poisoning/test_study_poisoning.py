"""The study of attacks in a small world: its runs differ as their names say."""

from functools import cache
from typing import Any

import numpy as np
import pytest

from benchmarks.studies.poisoning.attacked_loop import HOUR_MS, AttackedLoop
from benchmarks.studies.poisoning.attackers import FARM, Attack
from benchmarks.studies.poisoning.study_poisoning import Setting, measure, summary, world_of

pytestmark = pytest.mark.steady

SMALL = Setting(FARM, share=0.05, users=40, items=40, hours=3.0)


@cache
def figures() -> dict[str, Any]:
    return measure(0, SMALL)


@pytest.mark.slow
def test_an_open_system_is_moved_and_a_held_farm_moves_little() -> None:
    found = figures()
    assert found["open"]["moved"] > 5
    assert abs(found["unlearned"]["moved"]) < found["open"]["moved"] / 4
    assert found["named"] >= found["right"] == found["accounts"] == 2
    assert 0 < found["hours_until_held"] < 2


@pytest.mark.slow
def test_the_summary_has_medians_and_the_share_of_right_names() -> None:
    whole = summary([figures(), figures()])
    assert whole["open"]["moved"] == figures()["open"]["moved"]
    assert whole["open"]["auc_error"] == 0.0
    assert whole["recall"] == 1.0 and 0 < whole["precision"] <= 1.0


@pytest.mark.slow
def test_fixed_lists_are_shown_again_and_nothing_is_learned_from_unlearned_attackers() -> None:
    world = world_of(1, SMALL)
    first = AttackedLoop(world)
    first.run(world.start_ms, world.start_ms + HOUR_MS)
    attack = Attack(FARM, ("w1",), 0.05, world.start_ms)
    runs = []
    for attacked, unlearned in ((False, False), (True, True)):
        its = world_of(1, SMALL)
        if attacked:
            its.attacked(attack)
        loop = AttackedLoop(its, fixed=first.lists, unlearned=unlearned)
        loop.run(its.start_ms, its.start_ms + HOUR_MS)
        runs.append(loop)
    clean, unlearned_run = runs
    assert clean.lists.keys() == unlearned_run.lists.keys() == first.lists.keys()
    assert clean.lists == first.lists
    counts = [sum(j.counts["examples"] for j in run.loop.joiners) for run in runs]
    assert counts[0] == counts[1] > 0
    assert len(unlearned_run.events) > len(clean.events)
    now_ms = world.start_ms + HOUR_MS
    ranks = clean.probe("w1", now_ms).rank_U
    assert ranks.shape == (40,) and ranks.min() >= 1 and ranks.max() <= 40
    assert np.array_equal(ranks, clean.probe("w1", now_ms).rank_U)
