"""Archive part: archives topics, writes dead letters for unreadable records, and deletes users on request."""

import logging
from pathlib import Path
from typing import Final

from recsys.clock import wall_ms
from recsys.config.system_config import Config
from recsys.process.open_log import open_log
from recsys.process.part_process import Stop
from recsys.process.part_snapshot import PartState
from recsys.process.retry_loop import run_turn
from training.archive.inspector import Inspector
from training.archive.writer import PART, TOPICS, Archive
from training.deletion.erasure import PART as ERASURES
from training.deletion.erasure import Eraser

_LOG: Final = logging.getLogger(__name__)


def run(config: Config, stop: Stop) -> None:
    """Archives, inspects and erases until asked to stop, then writes the buffered records."""
    log = open_log(config)
    archive = Archive(log, Path(config.state) / "archive", wall_ms)
    inspector = Inspector(log, PartState(config.state, PART), wall_ms)
    eraser = Eraser(log, Path(config.state) / "archive", PartState(config.state, ERASURES), wall_ms)
    beat, written = stop.heartbeat, 0
    while not stop.is_set():
        moved = run_turn(archive.turn, stop, _LOG)
        judged = run_turn(inspector.turn, stop, _LOG)
        erased = run_turn(eraser.turn, stop, _LOG)
        if moved is None or judged is None or erased is None:
            continue
        beat.add("records", archive.written - written)
        written = archive.written
        beat.gauge("files", archive.files)
        beat.gauge("unreadable", inspector.unreadable)
        beat.gauge("set_aside", inspector.set_aside)
        beat.gauge("to_forget", eraser.waiting)
        beat.gauge("forgotten", eraser.done)
        for topic in TOPICS:
            beat.offsets(topic, archive.offsets(topic))
        if not moved and not judged:
            stop.wait(0.2)
    archive.flush()
    inspector.save()
    log.close()
