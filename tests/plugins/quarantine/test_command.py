"""`recsys quarantine` on the log of a stopped system."""

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from recsys.clock import machine_ms
from recsys.events.event_types import Engagement, Verdict, decode, encode
from recsys.events.hashing import partition_of
from recsys.events.records import EVENTS
from recsys.log.protocol import Append
from recsys.process.open_log import create_topics, open_log
from runtime.cli.main import app
from runtime.supervision import launch_plan
from tests.support.plan_config import config_in

Quarantine = Callable[..., Result]
KINDS = ("long_view", "click", "like", "follow", "comment", "share")


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A system whose log has 60 people, and two accounts that like one item again and again."""
    config, plan = launch_plan.resolve(config_in(tmp_path))
    launch_plan.write(config, plan)
    now_ms = machine_ms() - 60_000
    with closing(open_log(config)) as log:
        create_topics(log, config)

        def engage(user: str, item: int, kind: str, repeat: int = 0) -> Append:
            event = Engagement(
                time_ms=now_ms, request_id=f"{user}-{item}", user_id=user, item_id=f"v{item}",
                kind=kind, event_id=f"{user}-{item}-{kind}-{repeat}", source=len(user),
            )  # fmt: skip
            place = partition_of(user, log.partitions(EVENTS))
            return Append(place, user.encode(), encode(event))

        people = [
            engage(f"u{user}", item, kind)
            for user in range(60)
            for item in range(20)
            for kind in ("view", *(KINDS[:1] if (user + item) % 3 == 0 else ()))
        ]
        farm = [
            engage(user, item, kind, repeat)
            for user in ("farm1", "farm2")
            for item in range(20)
            for repeat in range(5 if item == 7 else 1)
            for kind in (KINDS if item == 7 else ("view",))
        ]
        log.append(EVENTS, [*people, *farm])
    return Path(config.state)


@pytest.fixture
def quarantine(state: Path) -> Quarantine:
    return lambda *arguments: CliRunner().invoke(app, ["quarantine", *arguments, "--state", str(state)])


def rows(quarantine: Quarantine) -> list[dict[str, object]]:
    listed: list[dict[str, object]] = json.loads(quarantine("list", "--json", "-").stdout)
    return listed


def verdicts(state: Path) -> list[Verdict]:
    with launch_plan.open_system(state) as (_, log):
        events = [
            decode(record.value)
            for partition in range(log.partitions(EVENTS))
            for record in log.read(EVENTS, partition, 0, 10_000)
        ]
    return [event for event in events if isinstance(event, Verdict)]


def test_a_cohort_is_named_held_and_lifted(quarantine: Quarantine, state: Path) -> None:
    [named] = rows(quarantine)
    assert (named["state"], named["users"]) == ("named", ["farm1", "farm2"])
    assert named["items"] == ["v7"] and "farm1 farm2: push v7" in quarantine("list").stdout
    assert "2 users are held" in quarantine("hold", "farm1", "farm2", "--why", "a farm").stdout
    assert {(v.user_id, v.quarantined, v.why) for v in verdicts(state)} == {
        ("farm1", True, "a farm"),
        ("farm2", True, "a farm"),
    }
    assert rows(quarantine) == [{"state": "held", "users": [u]} for u in ("farm1", "farm2")]
    assert "1 users count again" in quarantine("lift", "farm2").stdout
    assert rows(quarantine)[0] == {"state": "held", "users": ["farm1"]}


def test_the_rule_holds_what_has_enough_evidence(quarantine: Quarantine, state: Path) -> None:
    refused = quarantine("apply")
    assert refused.exit_code == 2 and "bounds.hold_nats is 0" in refused.stderr
    assert quarantine("apply", "--nats", "100000").stdout == ""
    assert verdicts(state) == []
    assert "held farm1 farm2 (" in quarantine("apply", "--nats", "20").stdout
    assert {(v.user_id, v.why[:5]) for v in verdicts(state)} == {("farm1", "rule:"), ("farm2", "rule:")}
    assert quarantine("apply", "--nats", "20").stdout == ""


def test_nobody_to_unlearn_leaves_the_model_as_it_is(quarantine: Quarantine) -> None:
    done = quarantine("hold", "farm1", "--unlearn")
    assert done.exit_code == 0 and "it stays unchanged" in done.stdout
