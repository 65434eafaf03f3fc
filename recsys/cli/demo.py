"""``recsys demo``: everything at once: data, all parts, a warm-up, simulated viewers, the feed.

``--check`` does the same unattended, measures it as a viewer would, prints one JSON object and ends.
"""

import contextlib
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console

from recsys.cli import demo_data, warmup
from recsys.cli import plan as plans
from recsys.cli import running as runs
from recsys.cli.processes import alive
from recsys.cli.vitals import Status, gather, server_status
from recsys.config import Config

VIEWERS: Final = 1.0  # lists a second
_CAUGHT_UP_S: Final = 420.0
_FEW: Final = 20  # records: ticks and viewers keep the tails moving
_LINE_S: Final = 10.0


class NotReady(RuntimeError):
    """The system didn't come up, or didn't catch up."""


def demo(
    check: Annotated[
        bool, typer.Option(help="Unattended: measure, print one JSON object, and end.")
    ] = False,
    state: Annotated[
        Path | None, typer.Option(help="The state folder. --check: a new one, if left out.")
    ] = None,
    log: Annotated[
        str, typer.Option(help="sqlite, kafka (a broker of our own), or kafka://host:port.")
    ] = "sqlite",
    viewers: Annotated[
        float, typer.Option(help="Lists a second that simulated viewers ask for.")
    ] = VIEWERS,
    limit: Annotated[
        int, typer.Option(help="Impressions of a data set to warm up with, the last ones.")
    ] = demo_data.LIMIT,
    json: Annotated[Path | None, typer.Option(help="Writes what --check prints here too.")] = None,
) -> None:
    """Starts everything, warms it up with data, and shows it; Ctrl-C ends what it started."""
    signal.signal(signal.SIGTERM, _interrupt)
    if check:
        raise typer.Exit(_check(state, log, limit, json))
    settings = _settings(state or Path("state"), log)
    console = Console()
    try:
        with started(settings, viewers, limit, console, control_room=True):
            config, _ = plans.read(settings.state)
            _say_where(config, console)
            _stay(config, console)
    except KeyboardInterrupt:
        raise typer.Exit(0) from None
    except (NotReady, ValueError) as error:
        console.print(f"[red]recsys:[/red] {error}", highlight=False)
        raise typer.Exit(1) from error


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _settings(state: Path, log: str) -> Config:
    from recsys.cli.up import log_url
    from recsys.settings import load

    settings = load("laptop")
    return replace(
        settings,
        state=str(state.resolve()),
        log=replace(settings.log, url=log_url(log)),
    )


@contextlib.contextmanager
def started(
    settings: Config, viewers: float, limit: int, console: Console, control_room: bool = False
) -> Iterator[None]:
    """The system, up and warm. Whatever happens, what was started here ends with the block; a system that
    runs already is used and left running."""
    from recsys.cli.up import start

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
    from recsys.feature_sets import decide
    from recsys.features import FeatureSet

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
    from recsys.feature_sets import feature_set
    from recsys.open_log import open_log

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
    from recsys.cli.down import end

    for _ in range(50):
        with contextlib.suppress(KeyboardInterrupt):
            end(state, console)
            try:
                with runs.held(state):
                    return
            except runs.AlreadyRuns:
                time.sleep(0.2)


def _say_where(config: Config, console: Console) -> None:
    url, room = plans.feed_url(config), plans.control_room_url(config)
    dashboard = (
        f"dashboard  http://127.0.0.1:{config.serve.dashboard_port}"
        f"  (Ray's; token in {config.state}/run/ray.token)\n"
    )
    console.print(
        f"\nfeed       {url}\nAPI docs   {url}/docs\n"
        + (f"control    {room}\n" if room else "")
        + f"{dashboard if config.serve.dashboard else ''}\n"
        "Swipe in the feed and watch it change. Ctrl-C ends everything.\n",
        highlight=False,
        soft_wrap=True,
    )


def _stay(config: Config, console: Console) -> None:
    """A line each ten seconds, until Ctrl-C or the system's end."""
    while True:
        time.sleep(_LINE_S)
        running = runs.read(config.state)
        if running is None or not alive(running.supervisor):
            raise NotReady("the system has ended; see `recsys status`")
        _check_lost(running.lost)
        said = server_status(config)
        if said:
            console.print(_line(said), highlight=False, soft_wrap=True)


def _line(said: dict[str, Any]) -> str:
    version = said.get("version") or {}

    def ms(name: str) -> str:
        value = said.get(name)
        return "–" if value is None else f"{value:,.0f} ms"

    return (
        f"{time.strftime('%H:%M:%S')}  model {version.get('line')}/{version.get('epoch')}/"
        f"{version.get('step')}  {said.get('events_per_s', 0):,.0f} events/s  click → session "
        f"{ms('click_to_session_p95_ms')}  click → model {ms('click_to_served_p95_ms')} (p95)"
    )


def _check(state: Path | None, log: str, limit: int, json: Path | None) -> int:
    """Prints the verdict; 0 where every bar is kept. Everything else goes to stderr."""
    import msgspec

    from recsys.cli.demo_trial import trial

    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="recsys-check-")) if state is None else state
    console = Console(stderr=True)
    settings = _settings(folder, log)
    # Unattended, so no port has to be known beforehand, and none that is in use stops it.
    settings = replace(settings, serve=replace(settings.serve, port=0, dashboard_port=0))
    with contextlib.redirect_stdout(sys.stderr):
        verdict = trial(settings, limit, console, began)
    text = msgspec.json.format(msgspec.json.encode(verdict), indent=2)
    print(text.decode(), flush=True)
    if json is not None:
        json.write_bytes(text + b"\n")
    if state is None and verdict.ok:
        shutil.rmtree(folder, ignore_errors=True)
    elif not verdict.ok:
        console.print(f"the state folder is kept: {folder}", highlight=False)
    return 0 if verdict.ok else 1
