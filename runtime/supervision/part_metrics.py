"""Prometheus metrics of the parts: their heartbeats and the facts of ``recsys status``, by stable names.

A counter or gauge of a heartbeat is ``recsys_PART_NAME``, counters with ``_total``. Where a heartbeat's name
ends in a variable suffix (a table, a shard, a label), the suffix becomes a label. The table below lists all
of them. A heartbeat value that it lacks is counted as ``recsys_metrics_unlisted``. Pure: a Status in, text
out.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Final

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from runtime.supervision.supervisor import State
from runtime.supervision.system_status import PartStatus, Status, Version, with_workers

COUNTER: Final = "counter"
GAUGE: Final = "gauge"
# Values of a part's state: the supervisor's states, and those of ``PartStatus.state``.
STATES: Final = (*map(str, State), "unchecked", "stalled", "gone", "orphaned")
UNLISTED: Final = "recsys_metrics_unlisted"
READY: Final = ("ready", "done")


@dataclass(frozen=True)
class PartMetric:
    """A counter or gauge of a part's heartbeat. ``label``: label name for the suffix after a dot."""

    part: str
    key: str
    kind: str
    about: str
    label: str = ""

    @property
    def name(self) -> str:
        """Name of the Prometheus metric."""
        part = self.part.replace("-", "_")
        return f"recsys_{part}_{self.key}" + "_total" * (self.kind == COUNTER)


_RETRIES: Final = ("retries", COUNTER, "Failed iterations: log unreachable")
_SPANS_SENT: Final = ("spans_sent", GAUGE, "Trace spans sent, since the part started")
_SPANS_DROPPED: Final = ("spans_dropped", GAUGE, "Trace spans dropped: buffer full or no receiver")
_SETS: Final = (
    ("sets", GAUGE, "Feature sets that are folded: two during a change"),
    ("sets_behind", GAUGE, "Events that a new set has still to fold"),
)
_METRICS: Final[dict[str, list[tuple[str, ...]]]] = {
    "session-fold": [
        ("events", COUNTER, "Events folded into sessions"),
        ("retries", COUNTER, "Failed iterations: log or session store unreachable"),
        ("repeats", GAUGE, "Duplicate events, since the part started"),
        ("unreadable", GAUGE, "Events and sessions that could not be decoded"),
        ("view_to_session_p95_ms", GAUGE, "Time from a view to its session, p95"),
        ("rows_evicted", GAUGE, "Counter rows of viewers that were evicted, since the part started"),
        *_SETS,
        _SPANS_SENT,
        _SPANS_DROPPED,
    ],
    "counters": [
        ("events", COUNTER, "Events counted for items"),
        _RETRIES,
        ("counters", GAUGE, "Counter rows in memory"),
        ("counters_evicted", GAUGE, "Counter rows that were evicted, since the part started"),
        ("contacts", GAUGE, "Pairs of a viewer and an entity, for counts of different viewers"),
        ("contacts_evicted", GAUGE, "Such pairs that were evicted"),
        ("viewers_evicted", GAUGE, "Viewers whose fields were evicted"),
        ("requests_evicted", GAUGE, "Requests whose fields were evicted"),
        ("covisit_rows", GAUGE, "Items with co-visits"),
        ("covisit_rows_evicted", GAUGE, "Items whose co-visits were evicted, since the part started"),
        ("unread_lists_evicted", GAUGE, "Lists that nobody had confirmed and were evicted, since the start"),
        ("covisit_users_forgotten", GAUGE, "Viewers whose newest items were evicted, since the part started"),
        ("quarantined", GAUGE, "Users in quarantine"),
        ("unreadable", GAUGE, "Records of item_counts that could not be decoded"),
        ("partitions_lacking", GAUGE, "Partitions to be counted anew before anything is published"),
        *_SETS,
    ],
    "joiner": [
        ("events", COUNTER, "Events read"),
        ("examples", COUNTER, "Examples emitted"),
        ("corrections", COUNTER, "Corrections emitted: an engagement arrived after its example"),
        ("late", COUNTER, "Engagements that arrived after the horizon"),
        ("unmatched", COUNTER, "Engagements of an unknown request"),
        ("attributed", COUNTER, "Engagements without a request that were joined with an open impression"),
        ("unattributed", COUNTER, "Engagements without a request and without a matching impression"),
        ("unproven", COUNTER, "Engagements whose sender proved nothing: not joined"),
        ("bounded", COUNTER, "Items of a list not learned: beyond the bounds of influence"),
        ("quarantined", COUNTER, "Events of users in quarantine: not joined"),
        ("withdrawn", COUNTER, "Pending items that a rewind named: not learned"),
        ("never_shown", COUNTER, "Items served but never shown"),
        ("repeats", COUNTER, "Duplicate events"),
        ("lost", COUNTER, "Examples whose impression was missing from the log"),
        ("sampled_out", COUNTER, "Examples dropped by join.negatives"),
        ("unreadable", COUNTER, "Records that could not be decoded"),
        ("skipped", COUNTER, "Events skipped: neither a snapshot nor the beginning of the log was available"),
        ("pending", GAUGE, "Pending impressions"),
        ("spilled", GAUGE, "Pending impressions that are on disk"),
        ("joined_after_s", GAUGE, "Time from the newest example's last event to the example on the log"),
        ("view_to_example_p95_ms", GAUGE, "Time from a view to its example on the log, p95"),
        _RETRIES,
        _SPANS_SENT,
        _SPANS_DROPPED,
    ],
    "sentinel": [
        ("events", COUNTER, "Events read"),
        ("held", GAUGE, "Users whom the rule held, since the part started"),
        _RETRIES,
    ],
    "archive": [
        ("records", COUNTER, "Records archived"),
        ("files", GAUGE, "Files written, since the part started"),
        ("files_dropped", GAUGE, "Files of the oldest hours removed, since the part started"),
        ("paused", GAUGE, "1 while nothing is archived: disk space is low"),
        ("missed", GAUGE, "Records that the log dropped before they were archived, since the part started"),
        ("unreadable", GAUGE, "Records of small topics that could not be decoded"),
        ("set_aside", GAUGE, "Undecodable records moved to dead_letters"),
        ("to_forget", GAUGE, "Users whose deletion from log and archive is pending"),
        ("forgotten", GAUGE, "Users deleted, since the part started"),
        _RETRIES,
    ],
    "sequencer": [
        ("steps", COUNTER, "Steps cut"),
        ("ticks", COUNTER, "Ticks written to idle partitions"),
        ("step", GAUGE, "Newest step that was cut"),
        ("waiting", GAUGE, "Examples waiting for a step"),
        ("unreadable", GAUGE, "Records that could not be decoded"),
        _RETRIES,
        _SPANS_SENT,
        _SPANS_DROPPED,
    ],
    "director": [
        ("snapshots_removed", GAUGE, "Snapshots pruned, since the part started"),
        ("oldest_snapshot", GAUGE, "Step of the oldest retained snapshot"),
        ("alarms", GAUGE, "Drift alarms, since the part started"),
        ("line_holds", GAUGE, "Holds of a live line by the guard of its lists, in total", "reason"),
        ("scores_unread", GAUGE, "Malformed score records, since the part started"),
        ("experiments_broken", GAUGE, "Experiments stopped because they were broken, in total"),
        ("experiments_harmed", GAUGE, "Experiments stopped by a guardrail, in total"),
        _RETRIES,
    ],
    "shadow": [
        ("steps", COUNTER, "Steps learned by candidates"),
        ("scored", COUNTER, "Examples scored by candidates"),
        ("refused", COUNTER, "Candidates refused before evaluation"),
        ("waits", COUNTER, "Iterations that waited for a candidate's input"),
        ("candidates", GAUGE, "Candidates being evaluated"),
        ("behind", GAUGE, "Steps that the slowest candidate is behind"),
        ("unlearn_behind", GAUGE, "Steps that a replay without unlearned users is behind; 0: none runs"),
        ("own_rows", GAUGE, "Candidate rows in memory, beside those of their starting snapshots"),
        ("cpu_s", GAUGE, "CPU seconds used by candidates"),
        ("panels", GAUGE, "Example panels kept to measure forgetting"),
        ("panel_step", GAUGE, "Step of the newest snapshot that scored the panels"),
        ("panel_age_s", GAUGE, "Age of the panel's snapshot in event time, in seconds", "age"),
        ("panel_examples", GAUGE, "Examples left in the panel", "age"),
        ("panel_auc_before", GAUGE, "AUC of the panel as served, before it was learned", "age"),
        ("panel_auc_learned", GAUGE, "AUC of the panel by the snapshot that had just learned it", "age"),
        ("panel_auc_now", GAUGE, "AUC of the panel by the newest snapshot", "age"),
        ("panel_forgotten", GAUGE, "AUC lost on the panel since it was learned", "age"),
        ("panel_cpu_s", GAUGE, "CPU seconds used to score panels"),
        ("panel_skipped", GAUGE, "Examples not checked for corrections: too many arrived"),
        ("panel_failures", COUNTER, "Failures of panel scoring, each followed by a restart"),
        _RETRIES,
    ],
    "trainer": [
        ("steps", COUNTER, "Steps learned"),
        ("examples", COUNTER, "Examples seen for the first time, including those sampled out"),
        ("left_out", COUNTER, "Examples missing from their step: they could not be read"),
        ("worker_failures", COUNTER, "Workers that ended with an error"),
        ("delta_bytes", COUNTER, "Bytes of deltas written to the log, all lines"),
        ("step", GAUGE, "Newest learned step"),
        ("learned_after_s", GAUGE, "Time from the newest example's last event to its learning"),
        ("view_to_learned_p95_ms", GAUGE, "Time from a view to its learning, p95"),
        ("group_starts", GAUGE, "Starts of the worker group"),
        ("unreadable_deltas", GAUGE, "Deltas that could not be decoded"),
        ("loss", GAUGE, "Prequential log loss of the newest step, by label", "label"),
        ("judged", GAUGE, "Examples behind auc, normalized_entropy and calibration, 4,096 or more"),
        ("auc", GAUGE, "Prequential AUC of the first label, from bins of logits", "label"),
        ("normalized_entropy", GAUGE, "Prequential log loss divided by that of the base rate", "label"),
        ("rate", GAUGE, "Part of the judged examples that have the label", "label"),
        ("calibration", GAUGE, "Prequential calibration: predicted over observed rate, by label", "label"),
        ("still_steps", GAUGE, "Steps with engagement since a row of a table moved, by table", "table"),
        ("spans_sent", GAUGE, "Trace spans of steps sent by worker 0, in this epoch since it started"),
        _RETRIES,
        _SPANS_DROPPED,
    ],
    "shards": [
        ("unanswered", COUNTER, "Status calls to shards that failed"),
        ("step", GAUGE, "Newest step that all shards have learned"),
        ("shard_step", GAUGE, "Newest step that the shard has learned", "shard"),
        ("rows", GAUGE, "Rows, all tables and shards"),
        ("table_rows", GAUGE, "Rows of the table", "table"),
        ("bytes", GAUGE, "Bytes, all tables and shards"),
        ("table_bytes", GAUGE, "Bytes of the table", "table"),
        ("waiting", GAUGE, "Ids without a row whose sightings are counted for admission"),
        ("table_waiting", GAUGE, "Ids of the table whose sightings are counted for admission", "table"),
        ("wal_bytes", GAUGE, "Bytes of the write-ahead logs"),
        ("wal_cut_bytes", GAUGE, "Bytes of torn or damaged records that starts of shards cut off"),
        ("wal_damaged", GAUGE, "Shards whose write-ahead log was damaged when they started"),
        ("snapshots_damaged", GAUGE, "Snapshots on disk that are damaged and don't count as kept"),
        ("expired", GAUGE, "Rows removed by their time-to-live, since the line began"),
        ("evicted", GAUGE, "Rows removed by a table's budget, since the line began"),
        ("refused_rows", GAUGE, "Row gradients rejected: not finite"),
        ("refused_dense", GAUGE, "Dense gradients rejected: not finite"),
        ("connections", GAUGE, "Workers connected to the shard with the fewest"),
        ("refused_connections", GAUGE, "Connections rejected: no TLS or token in time, or too many"),
        ("started", GAUGE, "Starts of missing shards, since the part started"),
        _SPANS_SENT,
        _SPANS_DROPPED,
    ],
    "serve": [
        ("replicas", GAUGE, "Running replicas"),
        ("restarts", GAUGE, "Number of the last completed `recsys restart serve`"),
        ("restarts_failed", GAUGE, "Number of the `recsys restart serve` that failed; 0: none"),
        ("retrieval_shards_away", GAUGE, "Retrieval shards that are down"),
    ],
    "metrics": [("scrapes", GAUGE, "Scrapes, since the part started")],
    "control-room": [
        ("pictures", COUNTER, "Snapshots made: one per second while a page is open"),
        ("pages", GAUGE, "Open pages"),
        ("picture_ms", GAUGE, "CPU milliseconds of the newest snapshot"),
        ("connections_ended", GAUGE, "Connections ended for newer ones, since the part started"),
    ],
    "viewers": [("viewers", GAUGE, "Simulated viewers in a session")],
}
PART_METRICS: Final = tuple(PartMetric(part, *row) for part, rows in _METRICS.items() for row in rows)
# Heartbeat keys that are both a sum and a prefix of suffixed keys (``rows``, ``rows.items``): the suffixed
# keys get a metric name of their own.
_SUFFIXED_NAMES: Final = {
    ("shards", "step"): "shard_step",
    ("shards", "rows"): "table_rows",
    ("shards", "waiting"): "table_waiting",
}
# name → kind, labels, help: metrics that don't come from one part's heartbeat.
FACTS: Final[dict[str, tuple[str, tuple[str, ...], str]]] = {
    "recsys_system_running": (GAUGE, (), "1 if the supervisor runs"),
    "recsys_system_ready": (GAUGE, (), "1 if all parts are ready"),
    "recsys_part_ready": (GAUGE, ("part",), "1 if the part is ready or done"),
    "recsys_part_state": (GAUGE, ("part", "state"), "1 for the current state of the part"),
    "recsys_part_restarts_total": (COUNTER, ("part",), "Restarts of the part, or of its process"),
    "recsys_part_lag": (GAUGE, ("part", "topic"), "Records that the part hasn't read yet"),
    "recsys_cut_step": (GAUGE, ("line", "epoch"), "Newest step on the topic steps"),
    "recsys_served_step": (GAUGE, ("line", "epoch"), "Step of the replica that answered"),
    "recsys_dead_letters": (GAUGE, (), "Records on dead_letters"),
    "recsys_exposed_ports": (GAUGE, (), "Ports open beyond loopback"),
    "recsys_disk_bytes": (GAUGE, ("kind",), "Bytes of the state folder, by folder, and by topic of the log"),
    "recsys_disk_budget_bytes": (GAUGE, (), "Bytes that the state folder may have"),
    "recsys_disk_free_bytes": (GAUGE, (), "Bytes that are free on the disk of the state folder"),
    "recsys_disk_level": (GAUGE, (), "0 ok, 1 low, 2 lower, 3 full: events are refused"),
    "recsys_machine_load": (GAUGE, (), "Load of the machine per core, over the last minute"),
    "recsys_machine_memory_free_bytes": (GAUGE, (), "Bytes of memory that the machine has left"),
    UNLISTED: (GAUGE, ("part",), "Heartbeat values of the part that have no metric"),
}
_BY_KEY: Final = {(metric.part, metric.key): metric for metric in PART_METRICS}
_COUNTERS: Final = {
    part: [m for m in PART_METRICS if m.part == part and m.kind == COUNTER and not m.label]
    for part in {metric.part for metric in PART_METRICS}
}
Sample = tuple[str, tuple[str, ...], float]  # name of the metric, label values, value
Samples = list[tuple[tuple[str, ...], float]]


def text_of(status: Status) -> bytes:
    """Renders the exposition text: ``text/plain; version=0.0.4``."""
    return generate_latest(_FixedFamilies(families(status)))


def families(status: Status) -> list[Metric]:
    """Builds every metric that has a value, in the order of the tables."""
    samples = dict[str, Samples]()
    of_parts = map(_part_samples, with_workers(status.parts))
    for name, labels, value in chain(_facts(status), *of_parts):
        samples.setdefault(name, []).append((labels, value))
    return [_family(name, *FACTS[name], samples[name]) for name in FACTS if name in samples] + [
        _family(m.name, m.kind, (m.label,) if m.label else (), m.about, samples[m.name])
        for m in PART_METRICS
        if m.name in samples
    ]


def _part_samples(part: PartStatus) -> Iterator[Sample]:
    """Yields the samples of a heartbeat, and last the number of its unlisted values.

    Parts create counters on first use. A missing counter is reported as 0, since ``increase`` can't see a
    series that begins at 1.
    """
    unlisted = 0
    if part.counters or part.gauges:
        for counter in _COUNTERS.get(part.name, ()):
            if counter.key not in part.counters:
                yield counter.name, (), 0.0
    for kind, values in ((COUNTER, part.counters), (GAUGE, part.gauges)):
        for key, value in values.items():
            first, dot, label = key.partition(".")
            name = _SUFFIXED_NAMES.get((part.name, first), first) if dot else first
            metric = _BY_KEY.get((part.name, name))
            if metric is None or metric.kind != kind or bool(metric.label) != bool(dot):
                unlisted += 1
            else:
                yield metric.name, (label,) if dot else (), value
    yield UNLISTED, (part.name,), float(unlisted)


def _facts(status: Status) -> Iterator[Sample]:
    yield "recsys_system_running", (), float(status.running)
    yield "recsys_system_ready", (), float(status.ready)
    for part in status.parts:
        yield "recsys_part_ready", (part.name,), float(part.state in READY)
        for state in STATES:
            yield "recsys_part_state", (part.name, state), float(part.state == state)
        yield "recsys_part_restarts_total", (part.name,), float(part.restarts)
        for topic, lag in sorted(part.lag.items()):
            yield "recsys_part_lag", (part.name, topic), float(lag)
    yield from _version("recsys_cut_step", status.cut)
    yield from _version("recsys_served_step", status.served)
    if status.dead_letters is not None:
        yield "recsys_dead_letters", (), float(status.dead_letters)
    yield "recsys_exposed_ports", (), float(len(status.exposed))
    if status.space is not None:
        for kind, size in sorted(status.space.kinds.items()):
            yield "recsys_disk_bytes", (kind,), float(size)
        yield "recsys_disk_budget_bytes", (), float(status.space.budget)
        yield "recsys_disk_free_bytes", (), float(status.space.free)
        yield "recsys_disk_level", (), float(status.space.level)
    if status.load is not None and status.memory_free_bytes is not None:
        yield "recsys_machine_load", (), status.load
        yield "recsys_machine_memory_free_bytes", (), float(status.memory_free_bytes)


def _version(name: str, version: Version | None) -> Iterator[Sample]:
    if version is not None:
        yield name, (version.line, str(version.epoch)), float(version.step)


def _family(name: str, kind: str, labels: tuple[str, ...], about: str, samples: Samples) -> Metric:
    of_kind = CounterMetricFamily if kind == COUNTER else GaugeMetricFamily
    family = of_kind(name.removesuffix("_total"), about, labels=labels)
    for values, value in samples:
        family.add_metric(values, value)
    return family


class _FixedFamilies(Collector):
    """Collector that returns given metric families."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterable[Metric]:
        return self._families
