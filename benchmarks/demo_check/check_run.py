"""Run of ``recsys demo --check``: starts and warms up a new system, measures it, and ends it."""

import logging
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Final

from rich.console import Console

from benchmarks.demo_check import check as checks
from benchmarks.demo_check import check_figures as figures
from benchmarks.demo_check.accounting import LogAccounting
from benchmarks.demo_check.check import Clock, Counts, FreshnessSample, VersionProbe, Viewer
from benchmarks.demo_check.check_figures import Figure, Verdict
from benchmarks.demo_check.crowd_process import BackgroundCrowd
from examples.short_video import warmup
from examples.short_video.demo_start import wait_until_caught_up
from examples.short_video.demo_system import running_system
from recsys.client import Client
from recsys.config.system_config import Config
from recsys.features.feature_set_file import feature_set
from recsys.process.open_log import open_log
from runtime.reports.status_table import exposed_port
from runtime.supervision import launch_plan, run_file
from runtime.supervision.system_status import gather

RATE: Final = 200.0  # background events per second
_SETTLE_S: Final = 120.0  # maximum time for the background to reach its rate
_MEASURE_S: Final = 3.0
_WINDOWS: Final = 5  # one after the other in which it must keep its rate
_ARCHIVED_S: Final = 30.0
_DEGRADED: Final = 0.01


def run_check(settings: Config, limit: int, console: Console, began_s: float) -> Verdict:
    """Runs the check. Errors become a failed figure; raises on an interrupt only. One user probes the served
    version many times a second, so users have no quota of lists."""
    results, state = dict[str, Figure](), Path(settings.state)
    settings = replace(settings, access=replace(settings.access, user_lists=0))
    try:
        with running_system(settings, 0.0, limit, console):
            config, _ = launch_plan.read(state)
            _measure(config, results, console)
    except Exception as error:
        logging.getLogger(__name__).exception("the check failed")
        results["failed"] = Figure(f"{type(error).__name__}: {error}"[:500], ok=False)
    seconds = time.monotonic() - began_s
    results["seconds"] = figures.at_most(seconds, 600.0)
    progress = warmup.read_progress(state)
    return Verdict(
        ok=all(figure.ok for figure in results.values()),
        figures=results,
        seconds=round(seconds, 1),
        data=progress.source if progress else "",
        log=settings.log.url.partition(":")[0],
    )


def _measure(config: Config, results: dict[str, Figure], console: Console) -> None:
    state, counts = Path(config.state), Counts()
    progress = warmup.read_progress(state)
    assert progress is not None
    warm = gather(state).served
    results["warm_step"] = figures.at_least(warm.step if warm else None, 1)
    with (
        closing(open_log(config)) as log,
        Client(launch_plan.local_api_url(config), timeout_s=10.0) as client,
    ):
        accounting = LogAccounting(log)
        # Each impression of a data set has a view: examples that the joiner lost would be missing here.
        warm_examples = accounting.examples_before()
        results["warm_examples"] = figures.at_least(warm_examples, 0.95 * progress.impressions)
        viewer = Viewer(client, Clock(), counts)
        console.print("check: topics", highlight=False)
        topics = [checks.try_topic(viewer, tag) for tag in checks.choose_topics(viewer)]
        results |= checks.topic_figures(topics)
        console.print(f"check: freshness under {RATE:.0f} events/s", highlight=False)
        background = _measure_freshness(config, viewer, accounting, results)
        console.print("check: event counts", highlight=False)
        wait_until_caught_up(state)
        _check_counts(config, accounting, counts, background, results)
    _check_health(config, warm.step if warm else 0, results)


def _measure_freshness(
    config: Config, viewer: Viewer, accounting: LogAccounting, results: dict[str, Figure]
) -> dict[str, int]:
    """Measures both delays under load; returns the counts of the background load."""
    sampled, url = FreshnessSample(), launch_plan.local_api_url(config)
    probe_counts = Counts()
    with BackgroundCrowd(url, RATE) as background, Client(url, timeout_s=10.0) as client:
        _settle(accounting)
        before, own, since_s = accounting.events().total, viewer.counts.total, time.monotonic()
        with VersionProbe(Viewer(client, Clock(), probe_counts), sampled):
            checks.sample(viewer, sampled)
            after, passed_s = accounting.events().total, time.monotonic() - since_s
            own = viewer.counts.total + probe_counts.total - own
            time.sleep(checks.SERVED_BAR_MS / 1000 + 1)
    rate = (after - before - own) / passed_s
    steps = figures.learned_at(accounting.examples(), accounting.steps())
    results |= checks.delay_figures(sampled, steps, rate, RATE)
    viewer.counts.answers += probe_counts.answers
    viewer.counts.degraded += probe_counts.degraded
    viewer.counts.refused += probe_counts.refused
    return background.counts


def _settle(accounting: LogAccounting) -> None:
    """Returns once the background nearly keeps its rate, or after ``_SETTLE_S``. While the crowd gathers,
    first lists make up a third of its events: the rate is high, and falls when all are there."""
    deadline, before, windows = time.monotonic() + _SETTLE_S, accounting.events().total, 0
    while windows < _WINDOWS and time.monotonic() < deadline:
        time.sleep(_MEASURE_S)
        now = accounting.events().total
        windows = windows + 1 if now - before >= 0.9 * RATE * _MEASURE_S else 0
        before = now


def _check_counts(
    config: Config,
    accounting: LogAccounting,
    counts: Counts,
    background: dict[str, int],
    results: dict[str, Figure],
) -> None:
    """Compares the numbers of events accepted, on the log, and in the archive."""
    accepted = counts.accepted + background["events"]
    events = accounting.events()
    folder = Path(config.state) / "archive"
    deadline = time.monotonic() + _ARCHIVED_S
    while (archived := accounting.archived(folder, events)) < events.engagements:
        if time.monotonic() > deadline:
            break
        time.sleep(1.0)
    results["events_accepted"] = figures.at_least(accepted, 1)
    results["events_on_log"] = figures.equal(events.engagements, accepted)
    results["events_in_archive"] = figures.equal(archived, accepted)
    results["events_lost_by_viewers"] = figures.equal(background["lost"], 0)
    results["events_refused"] = figures.equal(counts.refused + background["rejected"], 0)
    results["answers"] = Figure(counts.answers + background["lists"])
    results["impressions_on_log"] = figures.at_least(events.impressions, counts.answers + background["lists"])
    # An answer may rarely skip a stage whose deadline ran out, since two cores run everything here.
    degraded = max(counts.degraded, events.degraded)
    results["degraded_share"] = figures.at_most(degraded / max(1, events.impressions), _DEGRADED)
    results["dead_letters"] = figures.equal(accounting.dead_letters(), 0)
    loss = figures.prequential(accounting.metrics(), feature_set(config).schema.labels[0])
    results["log_loss"] = Figure(None if loss is None else round(loss[0], 4))
    entropy = None if loss is None else loss[0] / loss[1]
    results["normalised_entropy"] = figures.at_most(entropy, 1.0)


def _check_health(config: Config, warm_step: int, results: dict[str, Figure]) -> None:
    """Checks versions, restarts and ports."""
    status = gather(Path(config.state))
    results["served_step"] = figures.at_least(status.served.step if status.served else None, warm_step + 1)
    results["restarts"] = figures.equal(status.restarts, 0)
    running = run_file.read(config.state)
    sockets = [] if running is None else [s for part in running.parts for s in part.sockets]
    exposed = [text for s in sockets if not s.loopback and "OPEN" in (text := exposed_port(s))]
    results["ports"] = figures.at_least(len(sockets), 1)
    results["open_ports"] = Figure(", ".join(exposed) or "none", "none", not exposed)
