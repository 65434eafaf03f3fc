"""Unlearning users of a running system, in one process: the state of a line that never saw them, bit for bit,
without a stop, and whoever is killed meanwhile."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from parameter_server.storage import snapshots
from recsys.events.control_records import Decision, Unlearning
from recsys.events.hashing import partition_of
from recsys.events.records import (
    CONTROL,
    DELTAS,
    EXAMPLES,
    STEPS,
    Delta,
    Example,
    Forget,
    non_example,
    pack,
    topics,
    unpack,
)
from recsys.log.protocol import Append, Log, MemoryLog
from recsys.process.log_consumer import decoded, readable
from tests.support.seeds import drawn
from tests.support.training.unlearning_run import Killed, started
from training.deletion import live_replay, live_unlearning, unlearn
from training.lines.line import MAIN

pytestmark = [pytest.mark.slow, pytest.mark.steady]
USERS = ("u3", "u5")


@pytest.fixture(autouse=True)
def in_many_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unlearn, "_TURN", 5)
    monkeypatch.setattr(live_replay, "CAUGHT_UP", 3)
    monkeypatch.setattr(live_replay, "_SAVE_EVERY", 10)


def examples_of(log: Log, user: str, before: int) -> int:
    """Examples of a user's events up to an offset."""
    partition = partition_of(user, log.partitions(EXAMPLES))
    records = log.read(EXAMPLES, partition, 0, 100_000)
    mine = decoded((r for r in records if r.key == user.encode()), Example)
    return sum(example.offset <= before for _, example in mine)


async def test_the_line_is_as_if_it_never_had_the_users_and_the_system_goes_on(tmp_path: Path) -> None:
    run = await started(tmp_path)
    log, step = run.system.log, run.system.worker.step
    run.propose("cand-1", run.trained(1))
    await run.show(4)
    assert (tmp_path / "snapshots" / "cand-1").exists()
    assert all(examples_of(log, user, 1 << 60) > 5 for user in USERS)
    users = await run.ask(*USERS)
    await run.show_until_over()
    done = run.request
    assert (done.state, done.epoch, done.parent_epoch) == ("done", 1, 0) and done.first > 0
    assert done.step > step and run.lifecycle.live.reason == "2 users were unlearned"  # type: ignore[union-attr]
    assert run.digest() == run.digest_without(users)
    await run.show(20)
    assert run.answers[-1].stamp.epoch == 1 and run.system.epoch == 1
    assert run.digest() == run.digest_without(users) != run.digest_without({})

    # Nothing of them is left beside the live line.
    assert [examples_of(log, user, before) for user, before in users.items()] == [0, 0]
    assert run.lifecycle.candidates["cand-1"].stage == "ended"
    assert not (tmp_path / "snapshots" / "cand-1").exists()
    left = snapshots.complete_steps(tmp_path / "snapshots", MAIN, 0)
    assert max(left, default=0) < done.first
    deltas = [unpack(r.value, Delta) for r in log.read(DELTAS, 0, log.begin(DELTAS, 0), 9_999)]
    assert {delta.epoch for delta in deltas if delta.line == MAIN} == {1}
    assert live_replay.HOLDER not in log.holds(EXAMPLES, 0)
    # The steps before the swap have one record each: only those after it were written again.
    again = [s for s in run.steps() if s.epoch == 1]
    assert again[0].step == done.step + 1
    await run.system.stop()


async def test_a_held_cohort_is_unlearned_and_teaches_nothing_more(tmp_path: Path) -> None:
    run = await started(tmp_path)
    users = await run.hold(*USERS)
    await run.show_until_over()
    assert (run.request.state, run.request.epoch) == ("done", 1) and run.request.first > 0
    assert run.digest() == run.digest_without(users)
    await run.show(30)
    assert run.digest() == run.digest_without(users) != run.digest_without({})
    assert [examples_of(run.system.log, user, 1 << 60) for user in USERS] == [0, 0]
    await run.system.stop()


Kill = Callable[[pytest.MonkeyPatch], None]


def at(owner: Any, name: str, call: int = 1, after: bool = False) -> Kill:
    """Kills at the n-th call of a function, before it or after it."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        original, calls = getattr(owner, name), [0]

        def dies(*args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            if calls[0] != call:
                return original(*args, **kwargs)
            if after:
                original(*args, **kwargs)
            raise Killed

        monkeypatch.setattr(owner, name, dies)

    return patch


KILLS: dict[str, Kill] = {
    "start": at(live_replay, "find_start"),
    "adopt": at(snapshots, "adopt"),
    "adopted": at(snapshots, "adopt", after=True),
    "replay": at(unlearn.Replay, "turn", 2),
    "progress": at(unlearn.Replay, "write", 1, after=True),
    "part": at(snapshots, "write_part", 3),
    "pointer": at(snapshots, "sync_snapshot", 1),
    "removal": at(live_unlearning, "remove_replaced"),
    "lines": at(live_unlearning, "remove_ended_lines"),
    "erasure": at(live_unlearning, "erase_examples"),
    "erased": at(live_unlearning, "erase_examples", after=True),
}
# The director's records and the shadow's.
for module, states in ((live_unlearning, ("assigned", "done")), (live_replay, ("replaying", "replayed"))):
    for call, state in enumerate(states, 1):
        for when in ("before", "after"):
            KILLS[f"{when} {state}"] = at(module, "append_progress", call, when == "after")


@pytest.mark.parametrize("where", drawn("live unlearning", 4, sorted(KILLS)))
async def test_killed_anywhere_it_goes_on(
    tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = await started(tmp_path)
    users = await run.ask(*USERS)
    KILLS[where](monkeypatch)
    await run.show_until_over()
    await run.show(3)
    assert run.request.state == "done" and run.answers[-1].stamp.epoch == 1
    assert run.digest() == run.digest_without(users)
    assert [examples_of(run.system.log, u, before) for u, before in users.items()] == [0, 0]
    assert live_replay.HOLDER not in run.system.log.holds(EXAMPLES, 0)
    await run.system.stop()


async def test_a_promotion_meanwhile_begins_it_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unlearn, "_TURN", 1)
    run = await started(tmp_path)
    run.propose("cand-1", run.trained(1))
    await run.show(4)
    users = await run.ask("u3")
    while run.lifecycle.unlearnings.pending is None or run.request.state != "replaying":
        await run.show(1)
    run.say(Decision(line="cand-1", verdict="promote", to="all", epoch=2, why="it looks good"))
    await run.show_until_over()
    assert [(live.epoch, live.parent_epoch) for live in run.lifecycle.lives] == [(0, 0), (2, 0), (3, 2)]
    await run.show(3)
    assert run.digest() == run.digest_without(users)
    await run.system.stop()


async def test_requests_are_answered_one_after_the_other(tmp_path: Path) -> None:
    run = await started(tmp_path)
    users = await run.ask("u3", name="one")
    users |= await run.ask("u5", name="two")
    await run.show_until_over()
    assert [u.epoch for u in run.lifecycle.unlearnings.by_id.values()] == [1, 2]
    await run.show(3)
    assert run.digest() == run.digest_without(users)
    await run.system.stop()


async def test_a_user_of_whom_nothing_was_learned_costs_no_replay(tmp_path: Path) -> None:
    run = await started(tmp_path, 20)
    await run.ask("nobody")
    steps = run.system.log.end(STEPS, 0)
    await run.show_until_over()
    assert (run.request.state, run.request.first) == ("done", 0)
    assert run.lifecycle.live.epoch == 0 and run.system.log.end(STEPS, 0) > steps  # type: ignore[union-attr]
    await run.system.stop()


async def test_it_waits_until_the_joiner_has_passed_the_removal(tmp_path: Path) -> None:
    """An example that comes later would be learned by the epoch that is to be without it."""
    run = await started(tmp_path, 20)
    system = run.system
    turn, system.joiner.turn = system.joiner.turn, lambda: 0  # type: ignore[method-assign]
    users = await run.ask("u3")
    for _ in range(10):
        await run.show(1)
    assert run.request.state == "assigned"
    system.joiner.turn = turn  # type: ignore[method-assign]
    await run.show_until_over()
    assert run.request.state == "done"
    (forget,) = [
        message
        for record in run.originals.values()
        if isinstance(message := non_example(record.value), Forget)
    ]
    assert forget.offset == users["u3"]
    await run.show(3)
    assert run.digest() == run.digest_without(users)
    await run.system.stop()


async def test_what_is_too_far_back_is_refused_and_the_model_stays(tmp_path: Path) -> None:
    run = await started(tmp_path)
    log = run.system.log
    for partition in range(log.partitions(EXAMPLES)):
        for name in log.holds(EXAMPLES, partition):
            log.release(name, EXAMPLES)
        log.trim(EXAMPLES, partition, log.end(EXAMPLES, partition))
    await run.ask("u3")
    await run.show_until_over()
    assert run.request.state == "refused" and "no longer has all examples" in run.request.why
    assert run.lifecycle.live.epoch == 0 and run.request.epoch == 1  # type: ignore[union-attr]
    assert snapshots.epochs(tmp_path / "snapshots", MAIN) == [0]
    assert live_replay.HOLDER not in log.holds(EXAMPLES, 0)
    await run.show(3)
    assert run.answers[-1].stamp.epoch == 0
    await run.system.stop()


def test_only_the_first_record_names_the_users() -> None:
    log = MemoryLog()
    for topic in topics(1):
        log.create(topic)
    asked = Unlearning(id="a", users={"u3": 4})
    log.append(CONTROL, [Append(0, b"", pack(asked))])
    live_unlearning.append_progress(log, asked, "assigned", 5, epoch=2)
    assert [u.users for u in readable(log, CONTROL, Unlearning)] == [{"u3": 4}, {}]
