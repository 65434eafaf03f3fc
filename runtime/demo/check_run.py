"""The trial of ``recsys demo --check``: a fresh system, warmed up, measured, accounted for, and ended."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from rich.console import Console

from recsys.client import Client
from recsys.config.system_config import Config
from recsys.features.feature_set_file import feature_set
from replay import warmup
from runtime.demo import check as checks
from runtime.demo import check_figures as figures
from runtime.demo.accounting import Books, open_books
from runtime.demo.check import Clock, Counts, Sampled, Viewer, Watcher
from runtime.demo.check_figures import Figure, Verdict
from runtime.demo.crowd_process import Background
from runtime.demo.demo_system import started, wait_until_caught_up
from runtime.reports.status_table import beyond
from runtime.supervision import launch_plan as plans
from runtime.supervision import run_file as runs
from runtime.supervision.system_status import gather

RATE: Final = 200.0  # events a second of the background
_SETTLE_S: Final = 60.0  # at most, until all have come
_LOOK_S: Final = 3.0
_ARCHIVED_S: Final = 30.0
_DEGRADED: Final = 0.01


@dataclass
class _Measured:
    """What the trial has come to so far."""

    figures: dict[str, Figure] = field(default_factory=dict)
    data: str = ""


def trial(settings: Config, limit: int, console: Console, began_s: float) -> Verdict:
    """Never raises but for an interrupt: what goes wrong is a figure that isn't ok."""
    measured = _Measured()
    try:
        with started(settings, 0.0, limit, console):
            config, _ = plans.read(settings.state)
            _measure(config, measured, console)
    except Exception as error:
        logging.getLogger(__name__).exception("the check failed")
        measured.figures["failed"] = Figure(f"{type(error).__name__}: {error}"[:500], ok=False)
    seconds = time.monotonic() - began_s
    measured.figures["seconds"] = figures.at_most(seconds, 600.0)
    return Verdict(
        ok=all(figure.ok for figure in measured.figures.values()),
        figures=measured.figures,
        seconds=round(seconds, 1),
        data=measured.data,
        log=settings.log.url.partition(":")[0],
    )


def _measure(config: Config, measured: _Measured, console: Console) -> None:
    state, found = Path(config.state), measured.figures
    progress = warmup.read_progress(state)
    assert progress is not None
    measured.data = progress.source
    warm = gather(state).served
    found["warm_step"] = figures.at_least(warm.step if warm else None, 1)
    counts = Counts()
    with _books(config) as books, Client(plans.feed_url(config), timeout_s=10.0) as client:
        # Each impression of a data set is one view at least: what the joiner lost would be missing here.
        warm_examples = books.examples_before()
        found["warm_examples"] = figures.at_least(warm_examples, 0.95 * progress.impressions)
        viewer = Viewer(client, Clock(), counts)
        console.print("check: topics", highlight=False)
        tried = [checks.try_topic(viewer, tag) for tag in checks.usual(viewer)]
        found |= checks.topic_figures(tried)
        console.print(f"check: freshness under {RATE:.0f} events/s", highlight=False)
        background = _freshness(config, viewer, books, found)
        console.print("check: accounts", highlight=False)
        wait_until_caught_up(state)
        _accounts(config, books, counts, background, found)
    _health(config, warm.step if warm else 0, found)


@contextmanager
def _books(config: Config) -> Iterator[Books]:
    log, books = open_books(config)
    try:
        yield books
    finally:
        log.close()


def _freshness(
    config: Config, viewer: Viewer, books: Books, found: dict[str, Figure]
) -> dict[str, int]:
    """Both delays under load; returns what the load came to."""
    sampled, url = Sampled(), plans.feed_url(config)
    watching = Counts()
    with Background(url, RATE) as background, Client(url, timeout_s=10.0) as client:
        _settle(books)
        before, own, since_s = books.events().total, viewer.counts.total, time.monotonic()
        with Watcher(Viewer(client, Clock(), watching), sampled):
            checks.sample(viewer, sampled)
            after, passed_s = books.events().total, time.monotonic() - since_s
            own = viewer.counts.total + watching.total - own
            time.sleep(checks.SERVED_BAR_MS / 1000 + 1)
    rate = (after - before - own) / passed_s
    steps = figures.learned_at(books.examples(), books.steps())
    found |= checks.delay_figures(sampled, steps, rate, RATE)
    viewer.counts.answers += watching.answers
    viewer.counts.degraded += watching.degraded
    viewer.counts.refused += watching.refused
    return background.counts


def _settle(books: Books) -> None:
    """Returns once the background has nearly reached its rate, or doesn't get there."""
    deadline, before = time.monotonic() + _SETTLE_S, books.events().total
    while time.monotonic() < deadline:
        time.sleep(_LOOK_S)
        now = books.events().total
        if now - before >= 0.9 * RATE * _LOOK_S:
            return
        before = now


def _accounts(
    config: Config,
    books: Books,
    counts: Counts,
    background: dict[str, int],
    found: dict[str, Figure],
) -> None:
    """What was accepted, what stands on the log, what stands in the archive."""
    accepted = counts.accepted + background["events"]
    entries = books.events()
    folder = Path(config.state) / "archive"
    deadline = time.monotonic() + _ARCHIVED_S
    while (archived := books.archived(folder, entries)) < entries.engagements:
        if time.monotonic() > deadline:
            break
        time.sleep(1.0)
    found["events_accepted"] = figures.at_least(accepted, 1)
    found["events_on_log"] = figures.equal(entries.engagements, accepted)
    found["events_in_archive"] = figures.equal(archived, accepted)
    found["events_lost_by_viewers"] = figures.equal(background["lost"], 0)
    found["events_refused"] = figures.equal(counts.refused + background["rejected"], 0)
    found["answers"] = Figure(counts.answers + background["lists"])
    found["impressions_on_log"] = figures.at_least(
        entries.impressions, counts.answers + background["lists"]
    )
    # An answer may pass over a stage whose deadline ran out (two cores do everything here), but seldom.
    degraded = max(counts.degraded, entries.degraded)
    found["degraded_share"] = figures.at_most(degraded / max(1, entries.impressions), _DEGRADED)
    found["dead_letters"] = figures.equal(books.dead_letters(), 0)
    loss = figures.prequential(books.metrics(), feature_set(config).schema.labels[0])
    found["log_loss"] = Figure(None if loss is None else round(loss[0], 4))
    entropy = None if loss is None else loss[0] / loss[1]
    found["normalised_entropy"] = figures.at_most(entropy, 1.0)


def _health(config: Config, warm_step: int, found: dict[str, Figure]) -> None:
    """Versions, restarts, ports."""
    status = gather(Path(config.state))
    found["served_step"] = figures.at_least(
        status.served.step if status.served else None, warm_step + 1
    )
    found["restarts"] = figures.equal(status.restarts, 0)
    running = runs.read(config.state)
    sockets = [] if running is None else [s for part in running.parts for s in part.sockets]
    exposed = [said for s in sockets if not s.loopback and "OPEN" in (said := beyond(s))]
    found["ports"] = figures.at_least(len(sockets), 1)
    found["open_ports"] = Figure(", ".join(exposed) or "none", "none", not exposed)
