"""A system for the demo: started, warmed by what is known of the past, and ended whatever happens."""

import contextlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from recsys.config.system_config import Config
from replay import warmup
from runtime.demo import demo_data
from runtime.supervision import launch_plan as plans
from runtime.supervision import run_file as runs
from runtime.supervision.processes import alive
from runtime.supervision.system_status import Status, gather

_CAUGHT_UP_S: Final = 420.0
_FEW: Final = 20  # records: ticks and viewers keep the tails moving


class NotReady(RuntimeError):
    """The system didn't come up, or didn't catch up."""


@contextlib.contextmanager
def started(
    settings: Config, viewers: float, limit: int, console: Console, control_room: bool = False
) -> Iterator[None]:
    """The system, up and warm. Whatever happens, what was started here ends with the block; a system that
    runs already is used and left running."""
    from runtime.cli.up import start

    state = Path(settings.state)
    running = runs.read(state)
    ours = running is None or not alive(running.supervisor)
    past = _past(settings, limit, console)
    try:
        if start(settings, detach=True, viewers=viewers, control_room=control_room) != 0:
            raise NotReady(f"the system didn't come up; see {state / 'run'}")
        if past is not None:
            _warm(plans.read(state)[0], past, console)
        yield
    finally:
        if ours:
            _stop(state, console)


def _past(settings: Config, limit: int, console: Console) -> Any:
    """What is still to be played; None where the folder is warm. Decides the feature set."""
    from recsys.features.feature_set import FeatureSet
    from recsys.features.feature_set_file import decide

    state = Path(settings.state)
    begun = warmup.read_progress(state)
    if begun is not None and begun.done:
        return None
    now_ms = time.time_ns() // 1_000_000 if begun is None else begun.now_ms
    past, why = demo_data.choose(now_ms, limit)
    console.print(f"data: {why}", highlight=False)
    decide(settings, FeatureSet(past.schema, settings.model.features, settings.sessions.history))
    if begun is None:
        warmup.begin(state, past, now_ms)
    return past


def _warm(config: Config, past: Any, console: Console) -> None:
    """Plays the past, and waits until every part has learned it."""
    from recsys.features.feature_set_file import feature_set
    from recsys.process.open_log import open_log

    log = open_log(config)
    began = time.monotonic()
    with console.status("warming up") as line:

        def tell(progress: warmup.Progress) -> None:
            line.update(f"warm-up: {progress.impressions:,} of {progress.expected:,} impressions")

        try:
            progress = warmup.Warmup(log, feature_set(config), config).run(past, tell)
        finally:
            log.close()
        wait_until_caught_up(Path(config.state), lambda said: line.update(f"learning: {said}"))
    console.print(
        f"warmed up: {progress.items:,} items, {progress.impressions:,} impressions, "
        f"{time.monotonic() - began:.0f} s",
        highlight=False,
    )


def behind(status: Status) -> dict[str, int]:
    """What still has to flow: events to fold and join, examples to cut, steps to serve."""
    parts = {part.name: part for part in status.parts}
    readers = [parts[name] for name in ("session-fold", "counters", "joiner") if name in parts]
    sequencer = parts.get("sequencer")
    examples = 0
    if sequencer is not None:
        examples = sequencer.lag.get("examples", 0) + int(sequencer.gauges.get("waiting", 0))
    cut = status.cut.step if status.cut is not None else 1  # nothing cut yet: not there yet
    served = status.served.step if status.served is not None else 0
    return {
        "events": max((part.lag.get("events", 0) for part in readers), default=0),
        "examples": examples,
        "steps": max(0, cut - served),
    }


def wait_until_caught_up(
    state: Path, tell: Any = lambda said: None, timeout_s: float = _CAUGHT_UP_S
) -> None:
    """Returns once hardly anything waits, seen twice in a row. Raises NotReady after the timeout."""
    deadline = time.monotonic() + timeout_s
    quiet = 0
    left: dict[str, int] = {}
    while quiet < 2:
        if time.monotonic() > deadline:
            waits = ", ".join(f"{count} {name}" for name, count in left.items())
            raise NotReady(f"not caught up after {timeout_s:.0f} s: still to come {waits}")
        status = gather(state)
        if not status.running:
            raise NotReady(f"the system has ended; see {state / 'run' / 'up.log'}")
        _check_lost(status.lost)
        left = behind(status)
        tell(", ".join(f"{count:,} {name} to go" for name, count in left.items()))
        quiet = quiet + 1 if max(left.values()) <= _FEW else 0
        time.sleep(0.7)


def _check_lost(lost: Mapping[str, str]) -> None:
    for name, why in lost.items():
        raise NotReady(f"{name} can't go on: {why}")


def _stop(state: Path, console: Console) -> None:
    """Ends what runs in the folder, also a supervisor that is only just starting."""
    from runtime.cli.down import end

    for _ in range(50):
        with contextlib.suppress(KeyboardInterrupt):
            end(state, console)
            try:
                with runs.held(state):
                    return
            except runs.AlreadyRuns:
                time.sleep(0.2)
