"""What `recsys propose`, `approve` and `rollback` say of guards."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from recsys.config.system_config import Config
from recsys.events.control_records import ArmLine, Candidate, Control, Decision, Live, OperatorRequest
from recsys.events.records import topics
from recsys.features.feature_set_file import feature_set
from recsys.log.protocol import Log, MemoryLog
from runtime.cli import candidates as command
from runtime.cli.main import app
from runtime.jobs import director_requests
from runtime.reports.candidate_table import CandidateView
from tests.support.training.promotion_harness import WORSE, Town
from training.candidates.promoter import Promoter
from training.lines.control import ControlReader, append_control


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> MemoryLog:
    """A log on which epoch 1 is live and guarded, and a director that answers each wish at once."""
    log = MemoryLog()
    for topic in topics(1):
        log.create(topic)
    config = Config(state=str(tmp_path))

    def say(log: Log, *said: Control) -> list[int]:
        offsets = append_control(log, *said)
        control, director = (ControlReader(log), Promoter(log, config, feature_set(config), lambda: 9))
        for record in control.turn():
            director.fold(record)
        append_control(log, *director.turn())
        return offsets

    @contextmanager
    def system(state: Path) -> Iterator[tuple[Config, Log]]:
        yield config, log

    monkeypatch.setattr(command, "with_system", system)
    monkeypatch.setattr(director_requests, "append_control", say)
    say(
        log,
        Live(line="main", epoch=0),
        Candidate(line="good", registry="r"),
        Live(line="main", epoch=1, candidate="good", guarded=True),
    )
    return log


def run(*said: str) -> tuple[str, Exception | None]:
    found = CliRunner().invoke(app, list(said))
    return found.output, found.exception  # type: ignore[return-value]


def test_a_person_ends_a_guard_and_what_is_live_stays(log: MemoryLog) -> None:
    told, error = run("rollback", "guard-1", "--reason", "it is fine")
    assert error is None
    assert told.strip() == "guard-1 has ended: the live model stays, without a guard"
    control = ControlReader(log)
    wish, answer = control.turn()[-2:]
    assert isinstance(wish, OperatorRequest) and isinstance(answer, Decision) and answer.why == "it is fine"
    assert control.lifecycle.active == [] and control.live_epoch("main") == 1


def test_a_guard_is_not_approved_and_its_name_is_no_candidates(log: MemoryLog) -> None:
    arm = ArmLine(experiment="mine", arm="bold", trains="all")
    append_control(log, Candidate(line="mine.bold", registry="", arm=arm))
    for said, why in (
        (("approve", "mine.bold"), "mine.bold is arm: nothing to approve"),
        (("approve", "guard-1"), "guard-1 is shadow: nothing to approve"),
        (("propose", "guard-7"), "guard-7 is a name of a guard: add the candidate under another one"),
    ):
        _, error = run(*said)
        assert str(error) == why
    assert not any(isinstance(said, OperatorRequest) for said in ControlReader(log).turn())


def test_the_guard_is_shown_beside_candidates(log: MemoryLog) -> None:
    told, error = run("shadow", "--json", "-")
    assert error is None
    assert '"line": "guard-1"' in told and '"kind": "guard"' in told
    assert "0 of 20000 examples compared, nothing against what is live" in told


def test_an_ended_candidate_keeps_the_numbers_that_decided_about_it(tmp_path: Path) -> None:
    """Whoever looks later folds the decision before the scores, which then count for no one."""
    town = Town(tmp_path)
    town.say(Candidate(line="bad", registry="r"))
    town.scored("bad", WORSE, 20)
    (decided,) = town.decide()
    assert isinstance(decided, Decision) and decided.evidence["examples"] > 0
    view = CandidateView(town.log, town.config, lambda: town.now_ms)
    (row,) = view.turn()
    assert row["stage"] == "ended" and row.items() >= decided.evidence.items()
    cells = [str(cell) for column in view.table([row]).columns for cell in column.cells]
    low, high = decided.evidence["loss at least"], decided.evidence["loss at most"]
    assert cells[2] == "2,560" and f"({low:+.4f} to {high:+.4f})" in cells[3]
