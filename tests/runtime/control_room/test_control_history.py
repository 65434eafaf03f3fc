"""What the control room tells of ``control`` and dead letters: in order, bounded, nothing of a user."""

import msgspec

from recsys.events.control_records import (
    Alarm,
    Candidate,
    Decision,
    Erasure,
    Experiments,
    ExperimentState,
    LineHold,
    Live,
)
from recsys.events.records import CONTROL, DEAD_LETTERS, DeadLetter, pack, topics
from recsys.log.protocol import Append, MemoryLog
from runtime.control_room.control_history import MAX_RECORDS, ControlHistory, newest_dead_letters
from runtime.reports.experiment_summary import start_ms


def log_with(*control: msgspec.Struct) -> MemoryLog:
    log = MemoryLog()
    for topic in topics(1):
        log.create(topic)
    tell(log, *control)
    return log


def tell(log: MemoryLog, *control: msgspec.Struct) -> None:
    if control:
        log.append(CONTROL, [Append(0, b"", pack(its)) for its in control])


def test_it_reads_on_and_tells_the_newest_first() -> None:
    log = log_with(Live(line="main", epoch=0), Candidate(line="cand-1", registry="/secret/place", time_ms=5))
    story = ControlHistory(log)
    story.turn()
    assert story.panel()["live"]["epoch"] == 0
    tell(
        log,
        Decision(
            line="cand-1", verdict="promote", to="canary", share=0.05, why="better", evidence={"auc": 0.01}
        ),
        Alarm(
            kind="loss", what="like", at_ms=1, step=9, expected=0.5, measured=0.7, scale=0.1, detector="adwin"
        ),
        Experiments(revision=3),
    )
    story.turn()
    found = story.panel()
    assert [its["type"] for its in found["decisions"]] == ["decision", "candidate", "live"]
    assert found["decisions"][0]["evidence"] == {"auc": 0.01} and found["decisions"][0]["at"] == 2
    [candidate] = found["candidates"]
    assert (candidate["stage"], candidate["share"], candidate["why"]) == ("canary", 0.05, "better")
    assert found["alarms"][0]["measured"] == 0.7
    assert story.experiments.revision == 3


def test_of_revisions_it_keeps_the_newest_and_when_experiments_began() -> None:
    """As `recsys experiment report` has it."""
    texts = {f"{name}.yaml": f"name: {name}\n" for name in ("mine", "plain")}
    stands = [
        {},
        {"mine": ExperimentState(state="waiting")},
        {"mine": ExperimentState(started_ms=7)},
        {"mine": ExperimentState(state="stopped", started_ms=7)},
    ]
    revisions = [
        Experiments(revision=n, configs=texts if n > 1 else {}, states=states, time_ms=100 * n)
        for n, states in enumerate(stands, 1)
    ]
    story = ControlHistory(log_with(*revisions))
    story.turn()
    assert story.experiments == revisions[-1] and story.starts == {"mine": 7, "plain": 200}
    assert {name: start_ms(revisions, name) for name in (*story.starts, "none")} == {
        **story.starts,
        "none": 0,
    }


def test_who_is_forgotten_is_not_told_and_neither_is_what_cannot_be_read() -> None:
    log = log_with(Live(line="main", epoch=0), Erasure(user_id="alice", offset=3))
    log.append(CONTROL, [Append(0, b"", b"\xc1 not a record")])
    tell(log, *(Live(line="main", epoch=n, parent_epoch=n - 1) for n in range(1, MAX_RECORDS + 20)))
    story = ControlHistory(log)
    story.turn()
    said = msgspec.json.encode(story.panel())
    assert b"alice" not in said
    assert (
        len(story.panel()["decisions"]) == MAX_RECORDS and story.panel()["live"]["epoch"] == MAX_RECORDS + 19
    )


def test_dead_letters_say_where_and_why_and_not_what() -> None:
    log = log_with()
    for n in range(30):
        letter = DeadLetter(
            topic="events", partition=0, offset=n, reason="no " * 200, raw=b"alice likes cats"
        )
        log.append(DEAD_LETTERS, [Append(0, b"alice", pack(letter))])
    found = newest_dead_letters(log)
    assert [its["offset"] for its in found] == list(range(29, 21, -1))
    assert b"alice" not in msgspec.json.encode(found) and len(found[0]["reason"]) == 200
    log.append(
        DEAD_LETTERS,
        [
            Append(0, b"", b"junk"),
            Append(0, b"", pack(DeadLetter(topic="items", partition=0, offset=1, reason="x", raw=b""))),
        ],
    )
    found = newest_dead_letters(log)
    assert found[0]["topic"] == "items" and len(found) == 8


def test_a_hold_of_the_line_is_among_the_decisions_with_its_reason() -> None:
    hold = LineHold(line="main", epoch=1, kind="behind", reason="popularity hits more")
    history = ControlHistory(log_with(Live(line="main", epoch=1), hold))
    history.turn()
    first = history.panel()["decisions"][0]
    assert (first["type"], first["reason"]) == ("line_hold", "popularity hits more")
