"""The part that imports what learns late."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from recsys.config.system_config import Config
from recsys.events.control_records import Live, Unlearning
from recsys.events.records import CONTROL, STEPS, pack
from recsys.log.protocol import Append
from recsys.process.open_log import create_topics, open_log
from recsys.process.part_process import Stop
from training.candidates import shadow_loop, shadow_part

LIVE = Live(line="main", epoch=0, reason="the first line", time_ms=1)


@pytest.mark.parametrize(
    ("topic", "record"), [(STEPS, b""), (CONTROL, pack(Unlearning(id="u", users={"a": 1})))]
)
def test_the_loop_begins_with_a_step_or_a_decision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, topic: str, record: bytes
) -> None:
    config, began, stop = replace(Config(), state=str(tmp_path)), threading.Event(), Stop()
    monkeypatch.setattr(shadow_loop, "run", lambda config, stop, share: began.set())
    log = open_log(config)
    create_topics(log, config)
    log.append(CONTROL, [Append(0, b"", pack(LIVE))])  # of the director, at a first start
    part = threading.Thread(target=shadow_part.run, args=(config, stop))
    part.start()
    assert not began.wait(0.2) and stop.heartbeat.now().state == "ready"
    log.append(topic, [Append(0, b"", record)])
    assert began.wait(5)
    part.join(5)
    log.close()


def test_it_ends_before_it_began(tmp_path: Path) -> None:
    config, stop = replace(Config(), state=str(tmp_path)), Stop()
    log = open_log(config)
    create_topics(log, config)
    log.close()
    stop.set()
    shadow_part.run(config, stop)


def test_an_error_ends_the_thread_of_its_panels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, closed = replace(Config(), state=str(tmp_path)), threading.Event()
    log = open_log(config)
    create_topics(log, config)
    log.close()

    class Panels:
        def __init__(self, *_: object) -> None: ...

        def close(self) -> None:
            closed.set()

    def fails(self: shadow_loop.ShadowLoop) -> int:
        raise OSError("no space left")

    monkeypatch.setattr(shadow_loop, "PanelThread", Panels)
    monkeypatch.setattr(shadow_loop.ShadowLoop, "turn", fails)
    with pytest.raises(OSError, match="no space left"):
        shadow_loop.run(config, Stop())
    assert closed.is_set()
