"""The director's watch: what it reads, when a line is held, and which line then serves."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from experiments.promotion.kinds.guard import GuardEvidence
from experiments.promotion.kinds.line_state import LineState
from experiments.promotion.lifecycle import Lifecycle
from experiments.promotion.line_guard import NO_POSITIVE, LineFault
from recsys.config.promotion_config import PromotionConfig
from recsys.config.system_config import Config
from recsys.events.control_records import Candidate, Control, Decision, LineHold, Live, Unlearning
from recsys.events.event_types import Engagement, Impression, ServedItem, Stamp, Verdict
from recsys.events.records import CLICK_LIST, CONTROL, EVENTS, EXAMPLES, Example, record_of, topics
from recsys.features.feature_set_file import feature_set
from recsys.log.protocol import MemoryLog
from recsys.process.log_consumer import decoded, readable
from recsys.process.part_snapshot import PartState
from tests.support.training.unlearning_run import UnlearningRun, started
from training.candidates.line_watch import PAUSE_MS, REWIND, LineWatch

LABEL = feature_set(Config()).schema.labels[0]
FAULT = LineFault(NO_POSITIVE, "it learned nothing", 1, was_well=True)


def controls(run: UnlearningRun, kind: type) -> list[Any]:
    return [r for r in readable(run.system.log, CONTROL, Control) if isinstance(r, kind)]


def fail_now(run: UnlearningRun, since_ms: int, was_well: bool = True) -> None:
    """Has the guard find a fault at the next engagement."""
    fault, guard = (
        LineFault(NO_POSITIVE, "it learned nothing", since_ms, was_well),
        run.system.director.line_watch._guard,
    )
    faults = [fault]
    guard.learn = lambda *step: faults.pop() if faults else None  # type: ignore[method-assign]


@pytest.mark.slow
def test_a_line_at_fault_returns_to_its_state_before_without_what_came_since(tmp_path: Path) -> None:
    async def scenario() -> None:
        run = await started(tmp_path, 40, line_guard=True)
        since_ms = run.system.now_ms
        await run.show(40)
        fail_now(run, since_ms)
        while not controls(run, LineHold):
            await run.show(1)
        (hold,) = controls(run, LineHold)
        assert (hold.kind, hold.action, hold.since_ms) == (NO_POSITIVE, REWIND, since_ms)
        await run.show_until_over()
        done, live = run.request, run.lifecycle.live
        assert (done.state, done.epoch) == ("done", 1) and done.left_out
        assert live is not None and live.reason.endswith("without what came after it")
        ranges = {part.partition: range(part.start, part.stop) for part in done.left_out}
        places = places_of(run)

        def is_left_out(example: Example) -> bool:
            partition, offset = places[(example.request_id, str(example.item_id))]
            return offset in ranges.get(partition, ())

        assert sum(len(among) for among in ranges.values()) > 100
        assert run.digest() == run.digest_but(is_left_out) != run.digest_without({})
        await run.show(20)  # it learns on
        assert run.answers[-1].stamp.epoch == 1
        fail_now(run, run.system.now_ms)
        await run.show(3)
        assert len(controls(run, LineHold)) == 1, "six hours aren't over"
        await run.system.stop()

    asyncio.run(scenario())


def places_of(run: UnlearningRun) -> dict[tuple[str, str], tuple[int, int]]:
    """Partition and offset of each example, by its request and item."""
    log = run.system.log
    return {
        (example.request_id, str(example.item_id)): (partition, record.offset)
        for partition in range(log.partitions(EXAMPLES))
        for record, example in decoded(log.read(EXAMPLES, partition, 0, 100_000), Example)
    }


# --- one watch on a log of its own ---


class Lines:
    """Stands for the promoter: the lifecycle, and a guard that may take over."""

    def __init__(self, live: Live, failed: tuple[str, ...] = ()) -> None:
        self.lifecycle, self._failed = Lifecycle(), failed
        self.lifecycle.fold(Live(line="main", epoch=0))
        self.lifecycle.fold(live)

    def evidence(self, state: object) -> GuardEvidence:
        return GuardEvidence(failed=self._failed)

    def rollback_to_guard(self, state: LineState, why: str) -> Decision:
        return Decision(line=state.line, verdict="rollback", why=why)


class Watched:
    """A watch whose guard notes what it takes, and finds ``fault`` at each engagement."""

    def __init__(
        self, fault: LineFault | None, is_on: bool = True, state: str = "", blob: bytes = b""
    ) -> None:
        """``blob``: snapshot of the counters in the folder ``state``."""
        self.log, self.now_ms = MemoryLog(), 1_000
        for topic in topics(2):
            self.log.create(topic)
        config = replace(Config(), promotion=PromotionConfig(line_guard=is_on), state=state)
        if blob:
            PartState(state, "counters").save(self.log.id, {}, blob)
        self.watch = LineWatch(self.log, config, feature_set(config), lambda: self.now_ms)
        guard, self.took = self.watch._guard, list[Any]()
        guard.serve = lambda *list_: self.took.append(list_)  # type: ignore[method-assign,func-returns-value]
        guard.engage = lambda *what: self.took.append(what) or fault  # type: ignore[method-assign,func-returns-value]

    def append(self, *events: Any) -> None:
        self.log.append(EVENTS, [record_of(event, 2) for event in events])

    def turn(self, lines: Lines) -> list[Any]:
        records = self.watch.turn(lines)  # type: ignore[arg-type]
        for record in records:
            self.watch.fold(record)
            lines.lifecycle.fold(record)
        return records


def engagement(**changes: Any) -> Engagement:
    about = {"time_ms": 5, "request_id": "r", "user_id": "u", "item_id": "i", "kind": LABEL}
    return Engagement(**about | changes)


def served(request_id: str = "r", line: str = "main", epoch: int = 1) -> Impression:
    stamp = Stamp(line=line, epoch=epoch, step=1)
    items = [ServedItem(item_id="a"), ServedItem(item_id="b")]
    return Impression(time_ms=4, request_id=request_id, user_id="u", items=items, stamp=stamp)


def test_it_takes_lists_of_the_live_line_and_engagements_that_count() -> None:
    watched = Watched(None)
    others = served(f"{CLICK_LIST}r"), served(line="cand-1"), served(epoch=0)
    uncounted = engagement(kind="other"), engagement(proof=1)
    watched.append(*others, served(), *uncounted, engagement())
    assert watched.turn(Lines(Live(line="main", epoch=1))) == []
    assert watched.took == [("u", "r", ["a", "b"], 4), ("u", "i", 5, "r")]


def test_it_takes_no_list_that_is_not_the_models_and_nothing_of_a_viewer_in_quarantine() -> None:
    watched, lines = Watched(None), Lines(Live(line="main", epoch=1))
    degraded = msgspec.structs.replace(served(), degraded=["rank"])
    held, free = (Verdict(time_ms=4, user_id="u", quarantined=q) for q in (True, False))
    watched.append(degraded, held, served(), engagement(), free, served("r2"))
    assert watched.turn(lines) == [] and watched.took == [("u", "r2", ["a", "b"], 4)]


def test_what_the_bounds_leave_out_is_no_evidence() -> None:
    watched = Watched(None)
    for item_id in ("i", "i", "j"):
        watched.append(engagement(item_id=item_id, source=7, narrowed=True))
    watched.append(engagement(source=7, user_id="v"), engagement(source=7, user_id="v"))
    watched.turn(Lines(Live(line="main", epoch=1)))
    assert [took[0] for took in watched.took] == ["v"]


def test_it_knows_at_its_start_who_is_in_quarantine(tmp_path: Path) -> None:
    blob = msgspec.msgpack.encode({"quarantined": ["u"], "other": [1]})
    watched = Watched(None, state=str(tmp_path), blob=blob)
    watched.append(engagement(), engagement(user_id="v"))
    watched.turn(Lines(Live(line="main", epoch=1)))
    assert [took[0] for took in watched.took] == ["v"]


def test_switched_off_it_reads_nothing() -> None:
    watched = Watched(FAULT, is_on=False)
    watched.append(served(), engagement())
    assert watched.turn(Lines(Live(line="main", epoch=1))) == [] == watched.took


def test_a_guard_that_still_learns_takes_over_by_the_rollback_of_promotions() -> None:
    watched = Watched(FAULT)
    watched.append(engagement())
    promoted = Live(line="main", epoch=1, candidate="cand-1", guarded=True)
    hold, decision = watched.turn(Lines(promoted))
    assert (hold.action, hold.reason, hold.epoch) == ("rollback", FAULT.reason, 1)
    assert (decision.line, decision.verdict, decision.why) == ("guard-1", "rollback", FAULT.reason)


def test_a_guard_that_cannot_take_over_is_no_way_back() -> None:
    watched = Watched(FAULT)
    watched.append(engagement())
    promoted = Live(line="main", epoch=1, candidate="cand-1", guarded=True)
    hold, request = watched.turn(Lines(promoted, failed=("it is refused",)))
    assert hold.action == "rewind" and isinstance(request, Unlearning)
    assert (request.rewind_ms, request.why) == (FAULT.since_ms, FAULT.reason)


def test_a_line_that_was_never_well_has_nothing_to_return_to_but_is_reported() -> None:
    watched = Watched(replace(FAULT, was_well=False))
    watched.append(engagement())
    (hold,) = watched.turn(Lines(Live(line="main", epoch=1)))
    assert hold.action == "" and watched.watch.holds == {NO_POSITIVE: 1}


def test_the_next_hold_waits_six_hours() -> None:
    watched, lines = Watched(FAULT), Lines(Live(line="main", epoch=1))
    watched.append(engagement())
    assert len(watched.turn(lines)) == 2
    lines.lifecycle.unlearnings.by_id.clear()  # the rewind is over
    for later_ms, records in ((PAUSE_MS - 1, 0), (1, 2)):
        watched.now_ms += later_ms
        watched.append(engagement())
        assert len(watched.turn(lines)) == records


@pytest.mark.parametrize(
    "pending",
    [
        [Unlearning(id="x", users={"u": 1})],
        [
            Candidate(line="cand-2", registry="r"),
            Decision(line="cand-2", verdict="promote", to="canary", share=0.1),
        ],
    ],
)
def test_it_waits_for_the_end_of_a_canary_or_a_rewind(pending: list[Control]) -> None:
    watched, lines = Watched(FAULT), Lines(Live(line="main", epoch=1))
    for record in pending:
        lines.lifecycle.fold(record)
    watched.append(engagement())
    assert watched.turn(lines) == []
