"""Rewinding a running system, in one process: the state of a line that never saw what is named, bit for bit,
and counters that never counted it."""

from pathlib import Path

import pytest

from parameter_server.storage import snapshots
from recsys.events.records import EXAMPLES, STEPS, Example
from recsys.process.log_consumer import decoded
from runtime.jobs.rewind import read_events, request_rewind
from tests.support.seeds import drawn
from tests.support.training.unlearning_run import Killed, UnlearningRun, started
from training.deletion import live_replay, live_unlearning, unlearn
from training.deletion.rewind_scope import LoggedList, Named, RewindScope
from training.lines.line import MAIN

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def in_many_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unlearn, "_TURN", 5)
    monkeypatch.setattr(live_replay, "CAUGHT_UP", 3)
    monkeypatch.setattr(live_replay, "_SAVE_EVERY", 10)


def ask(run: UnlearningRun, since_ms: int, *names: Named, name: str = "first") -> RewindScope:
    log = run.system.log
    scope = RewindScope(names, since_ms)
    assert read_events(log, scope)
    request_rewind(log, scope, run.system.now_ms, name)
    return scope


def user(name: str) -> Named:
    return Named(name, frozenset([name]))


def learned_since(run: UnlearningRun, since_ms: int, name: str) -> int:
    """Examples of a user on the log that were emitted since a time."""
    log = run.system.log
    records = [r for p in range(log.partitions(EXAMPLES)) for r in log.read(EXAMPLES, p, 0, 9_999)]
    return sum(
        example.user_id == name and example.closed_ms >= since_ms for _, example in decoded(records, Example)
    )


async def test_the_line_is_as_if_it_had_not_seen_the_user_since(tmp_path: Path) -> None:
    run = await started(tmp_path, 40)
    since_ms = run.system.now_ms
    await run.show(60)
    before, until_ms = learned_since(run, since_ms, "u3"), run.system.now_ms
    assert before > 3
    scope = ask(run, since_ms, user("u3"))
    assert len(scope.answers) == 60
    await run.show_until_over()
    done, live = run.request, run.lifecycle.live
    assert (done.state, done.epoch, done.parent_epoch) == ("done", 1, 0) and done.base_step > 0
    assert live is not None and live.reason.endswith(" without events of 1 users")

    def is_left_out(example: Example) -> bool:
        return example.user_id == "u3" and since_ms <= example.closed_ms <= until_ms

    assert run.digest() == run.digest_but(is_left_out)
    # The user goes on: what comes later is learned.
    await run.show(60)
    assert run.answers[-1].stamp.epoch == 1
    expected = run.digest_but(is_left_out)
    assert run.digest() == expected != run.digest_without({})
    assert learned_since(run, until_ms, "u3") > 0
    assert max(snapshots.complete_steps(tmp_path / "snapshots", MAIN, 0)) < done.first
    await run.system.stop()


PLACES = ("find_start", "adopt", "turn", "append_live_record", "erase_examples")


@pytest.mark.parametrize("where", drawn("live rewind", 2, PLACES))
async def test_killed_anywhere_it_goes_on(
    tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    owners = {
        "find_start": live_replay, "adopt": snapshots, "turn": unlearn.Replay,
        "append_live_record": live_unlearning, "erase_examples": live_unlearning,
    }  # fmt: skip

    run = await started(tmp_path, 30)
    since_ms = run.system.now_ms
    await run.show(30)
    until_ms = run.system.now_ms
    ask(run, since_ms, user("u3"), user("u5"))
    original, calls = getattr(owners[where], where), [0]

    def dies(*arguments: object, **named: object) -> object:
        calls[0] += 1
        if calls[0] == (2 if where == "turn" else 1):
            raise Killed
        return original(*arguments, **named)

    monkeypatch.setattr(owners[where], where, dies)
    await run.show_until_over()
    await run.show(3)
    assert run.request.state == "done" and calls[0] > 1
    assert run.digest() == run.digest_but(
        lambda e: e.user_id in ("u3", "u5") and since_ms <= e.closed_ms <= until_ms
    )
    await run.system.stop()


async def test_without_users_all_is_learned_again_and_nothing_changes(tmp_path: Path) -> None:
    run = await started(tmp_path, 30)
    since_ms = run.system.now_ms
    await run.show(30)
    ask(run, since_ms)
    await run.show_until_over()
    assert (run.request.state, run.request.epoch) == ("done", 1)
    assert run.digest() == run.digest_without({})
    await run.system.stop()


async def test_a_request_of_which_nothing_was_learned_costs_no_replay(tmp_path: Path) -> None:
    run = await started(tmp_path, 30)
    since_ms = run.system.now_ms
    await run.show(5)
    steps = run.system.log.end(STEPS, 0)
    scope = RewindScope([Named("r", requests=frozenset(["r"]))], since_ms)
    scope.take([LoggedList(since_ms, "r", "u3", [])])  # nobody looked at it
    request_rewind(run.system.log, scope, run.system.now_ms, "first")
    await run.show_until_over()
    assert (run.request.state, run.request.first) == ("done", 0)
    assert run.lifecycle.live.epoch == 0 and run.system.log.end(STEPS, 0) > steps  # type: ignore[union-attr]
    await run.system.stop()


async def test_item_counters_no_longer_have_what_was_withdrawn(tmp_path: Path) -> None:
    run = await started(tmp_path, 40)
    system = run.system
    since_ms = system.now_ms
    await run.show(40)
    fold = system.counters.oldest.fold
    keys = sorted(fold.counters.export()[0].tolist())
    before = fold.counters.export(keys)[1].copy()
    ask(run, since_ms, Named("everything", everything=True))
    system.turn()
    after = fold.counters.export(keys)[1]
    assert after.sum() < 0.7 * before.sum()
    await system.stop()
