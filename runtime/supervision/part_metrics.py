"""What Prometheus reads of the parts: their heartbeats and the facts of ``recsys status``, by stable names.

A counter or gauge of a heartbeat is ``recsys_PART_NAME``, counters with ``_total``; where its name ends in
something else each time (a table, a shard, a label), that is a label. The table below says all of them. What
a heartbeat says beside it isn't told, and is counted as ``recsys_metrics_unlisted``. Pure: a Status in, text
out.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from runtime.supervision.supervisor import State
from runtime.supervision.system_status import PartStatus, Status, Version

COUNTER: Final = "counter"
GAUGE: Final = "gauge"
# As a part's state is told: the supervisor's, and what is seen of a part beside it.
STATES: Final = (*map(str, State), "stalled", "orphaned")
UNLISTED: Final = "recsys_metrics_unlisted"
READY: Final = ("ready", "done")


@dataclass(frozen=True)
class Said:
    """A counter or gauge of a part's heartbeat. ``label``: what its name ends in, after a dot."""

    part: str
    key: str
    kind: str
    about: str
    label: str = ""

    @property
    def name(self) -> str:
        """As Prometheus shows it."""
        part = self.part.replace("-", "_")
        return f"recsys_{part}_{self.key}" + "_total" * (self.kind == COUNTER)


SAID: Final = (
    Said("session-fold", "events", COUNTER, "Events folded into sessions"),
    Said("session-fold", "failed_turns", COUNTER, "Turns that failed: the log or the store was away"),
    Said("session-fold", "repeats", GAUGE, "Events that had come before, since it began"),
    Said("session-fold", "unreadable", GAUGE, "Events and sessions that couldn't be read"),
    Said("session-fold", "click_to_session_p95_ms", GAUGE, "From a view's own time to its session"),
    Said("session-fold", "spans_sent", GAUGE, "Spans of traced requests that were sent, since it began"),
    Said("session-fold", "spans_dropped", GAUGE, "Spans that weren't: no room, or no receiver"),
    Said("counters", "events", COUNTER, "Events counted for items"),
    Said("counters", "failed_turns", COUNTER, "Turns that failed: the log was away"),
    Said("counters", "counters", GAUGE, "Rows of counters held"),
    Said("joiner", "events", COUNTER, "Events read"),
    Said("joiner", "examples", COUNTER, "Examples made"),
    Said("joiner", "corrections", COUNTER, "Corrections made: an engagement came after its example"),
    Said("joiner", "late", COUNTER, "Engagements after the horizon"),
    Said("joiner", "unmatched", COUNTER, "Engagements of a request that isn't known"),
    Said("joiner", "attributed", COUNTER, "Engagements without a request, joined with an open impression"),
    Said("joiner", "unattributed", COUNTER, "Engagements without a request and without such an impression"),
    Said("joiner", "never_shown", COUNTER, "Items served and never shown"),
    Said("joiner", "repeats", COUNTER, "Events that had come before"),
    Said("joiner", "lost", COUNTER, "Examples whose impression was gone from the log"),
    Said("joiner", "sampled_out", COUNTER, "Examples left out by join.negatives"),
    Said("joiner", "unreadable", COUNTER, "Records that couldn't be read"),
    Said("joiner", "skipped", COUNTER, "Events passed over for want of a snapshot and the log's beginning"),
    Said("joiner", "retries", COUNTER, "Turns that failed: the log was away"),
    Said("joiner", "pending", GAUGE, "Impressions held"),
    Said("joiner", "spilled", GAUGE, "Of these, on disk"),
    Said("joiner", "spans_sent", GAUGE, "Spans of traced requests that were sent, since it began"),
    Said("joiner", "spans_dropped", GAUGE, "Spans that weren't: no room, or no receiver"),
    Said("joiner", "joined_after_s", GAUGE, "From the event that made the newest example to the log"),
    Said("joiner", "view_to_example_p95_ms", GAUGE, "From a view's own time to its example on the log"),
    Said("archive", "records", COUNTER, "Records archived"),
    Said("archive", "retries", COUNTER, "Turns that failed: the log was away"),
    Said("archive", "files", GAUGE, "Files written, since it began"),
    Said("archive", "unreadable", GAUGE, "Records of small topics that couldn't be read"),
    Said("archive", "set_aside", GAUGE, "Of these, put into dead_letters"),
    Said("archive", "to_forget", GAUGE, "Users who wait to be erased from log and archive"),
    Said("archive", "forgotten", GAUGE, "Users who were, since it began"),
    Said("sequencer", "steps", COUNTER, "Steps cut"),
    Said("sequencer", "ticks", COUNTER, "Ticks written to idle partitions"),
    Said("sequencer", "retries", COUNTER, "Turns that failed: the log was away"),
    Said("sequencer", "step", GAUGE, "The newest step that was cut"),
    Said("sequencer", "waiting", GAUGE, "Examples that wait for a step"),
    Said("sequencer", "unreadable", GAUGE, "Records that couldn't be read"),
    Said("sequencer", "spans_sent", GAUGE, "Spans of traced requests that were sent, since it began"),
    Said("sequencer", "spans_dropped", GAUGE, "Spans that weren't: no room, or no receiver"),
    Said("director", "retries", COUNTER, "Turns that failed: the log was away"),
    Said("director", "snapshots_removed", GAUGE, "Snapshots pruned, since it began"),
    Said("director", "oldest_snapshot", GAUGE, "The step of the oldest snapshot that is kept"),
    Said("director", "alarms", GAUGE, "Alarms of drift, since it began"),
    Said("director", "rate", GAUGE, "What learning rates are multiplied by, after an alarm"),
    Said("director", "publish_every", GAUGE, "Steps whose rows go out together"),
    Said("director", "offline_runs", GAUGE, "1 while drift.offline_command runs"),
    Said("director", "scores_unread", GAUGE, "Records on scores that made no sense, since it began"),
    Said("director", "experiments_broken", GAUGE, "Experiments stopped since they are broken, ever"),
    Said("director", "experiments_harmed", GAUGE, "Experiments stopped by a guardrail, ever"),
    Said("shadow", "steps", COUNTER, "Steps that candidates took"),
    Said("shadow", "scored", COUNTER, "Examples that candidates scored"),
    Said("shadow", "refused", COUNTER, "Candidates refused before they were judged"),
    Said("shadow", "waits", COUNTER, "Turns that waited for what a candidate needs"),
    Said("shadow", "retries", COUNTER, "Turns that failed: the log was away"),
    Said("shadow", "candidates", GAUGE, "Candidates at work"),
    Said("shadow", "behind", GAUGE, "Steps that the slowest of them still has to take"),
    Said("shadow", "own_rows", GAUGE, "Rows that they have in memory, beside those they began from"),
    Said("shadow", "cpu_s", GAUGE, "Seconds of the processor that they took"),
    Said("shadow", "panels", GAUGE, "Panels of examples that are kept, to measure forgetting"),
    Said("shadow", "panel_step", GAUGE, "The step of the snapshot that is meant by now"),
    Said("shadow", "panel_age_s", GAUGE, "How long ago the panel's snapshot was, in event time", "age"),
    Said("shadow", "panel_examples", GAUGE, "Examples of the panel that are still there", "age"),
    Said("shadow", "panel_auc_before", GAUGE, "AUC of the panel as it was served, before it taught", "age"),
    Said("shadow", "panel_auc_learned", GAUGE, "The same by the snapshot that had just learned it", "age"),
    Said("shadow", "panel_auc_now", GAUGE, "The same by the newest snapshot", "age"),
    Said("shadow", "panel_forgotten", GAUGE, "AUC that the panel has lost since it was learned", "age"),
    Said("shadow", "panel_cpu_s", GAUGE, "Seconds of the processor that scoring panels took"),
    Said("shadow", "panel_skipped", GAUGE, "Examples not looked through for corrections: too many came"),
    Said("shadow", "panel_failures", COUNTER, "Times that scoring panels failed and began anew"),
    Said("trainer", "steps", COUNTER, "Steps learned"),
    Said("trainer", "examples", COUNTER, "Examples met for the first time, with those sampled out"),
    Said("trainer", "left_out", COUNTER, "Examples that their step went without: they couldn't be read"),
    Said("trainer", "worker_failures", COUNTER, "Workers that ended by an error"),
    Said("trainer", "retries", COUNTER, "Turns that failed: the log was away"),
    Said("trainer", "delta_bytes", COUNTER, "Bytes of deltas on the log, of all lines"),
    Said("trainer", "step", GAUGE, "The newest step that was learned"),
    Said("trainer", "learned_after_s", GAUGE, "From the event that made the newest example to its learning"),
    Said("trainer", "view_to_learned_p95_ms", GAUGE, "From a view's own time to its having been learned"),
    Said("trainer", "group_starts", GAUGE, "Times that the group of workers began"),
    Said("trainer", "unreadable_deltas", GAUGE, "Deltas that couldn't be read"),
    Said("trainer", "loss", GAUGE, "Prequential log loss of the newest step, of each label", "label"),
    Said("trainer", "judged", GAUGE, "Newest examples that the next three are of, 4,096 and more"),
    Said("trainer", "auc", GAUGE, "Prequential AUC of the first label, from bins of logits", "label"),
    Said("trainer", "normalized_entropy", GAUGE, "Prequential log loss over that of the base rate", "label"),
    Said("trainer", "calibration", GAUGE, "Prequential: predicted over happened, of each label", "label"),
    Said("trainer", "spans_sent", GAUGE, "Spans of steps that worker 0 sent, in this epoch since it began"),
    Said("trainer", "spans_dropped", GAUGE, "Spans that weren't: no room, or no receiver"),
    Said("shards", "unanswered", COUNTER, "Times that a shard didn't answer the part"),
    Said("shards", "step", GAUGE, "The newest step that all shards have learned"),
    Said("shards", "shard_step", GAUGE, "The same of each shard", "shard"),
    Said("shards", "rows", GAUGE, "Rows of all tables and shards"),
    Said("shards", "table_rows", GAUGE, "The same of each table", "table"),
    Said("shards", "bytes", GAUGE, "Bytes of all tables and shards"),
    Said("shards", "table_bytes", GAUGE, "The same of each table", "table"),
    Said("shards", "waiting", GAUGE, "Sightings of ids without a row that are remembered"),
    Said("shards", "table_waiting", GAUGE, "The same of each table", "table"),
    Said("shards", "wal_bytes", GAUGE, "Bytes of the write-ahead files"),
    Said("shards", "expired", GAUGE, "Rows that left by their time-to-live, since the line began"),
    Said("shards", "evicted", GAUGE, "Rows that left for a table's budget, since the line began"),
    Said("shards", "refused_rows", GAUGE, "Gradients of rows that weren't finite, left out"),
    Said("shards", "refused_dense", GAUGE, "Dense gradients that weren't finite, left out"),
    Said("shards", "refused_connections", GAUGE, "Connections without the token"),
    Said("shards", "started", GAUGE, "Times that a shard had to be made, since the part began"),
    Said("shards", "spans_sent", GAUGE, "Spans of traced requests that were sent, since it began"),
    Said("shards", "spans_dropped", GAUGE, "Spans that weren't: no room, or no receiver"),
    Said("serve", "replicas", GAUGE, "Replicas that run"),
    Said("serve", "restarts", GAUGE, "The last `recsys restart serve` that was fulfilled"),
    Said("serve", "retrieval_shards_away", GAUGE, "Shards of retrieval that don't run"),
    Said("metrics", "scrapes", GAUGE, "Times that these were asked for, since the part began"),
    Said("control-room", "pictures", COUNTER, "Pictures made: one a second while somebody looks"),
    Said("control-room", "pages", GAUGE, "Pages that look"),
    Said("control-room", "picture_ms", GAUGE, "What the newest picture took of the processor"),
    Said("viewers", "viewers", GAUGE, "Simulated viewers who are inside"),
)  # fmt: skip
# Keys of a heartbeat whose families are told under another name: there ``rows`` is both a sum and a family.
_FAMILIES: Final = {
    ("shards", "step"): "shard_step",
    ("shards", "rows"): "table_rows",
    ("shards", "waiting"): "table_waiting",
}
# name → kind, labels, about: what isn't of one part's heartbeat.
FACTS: Final[dict[str, tuple[str, tuple[str, ...], str]]] = {
    "recsys_system_running": (GAUGE, (), "1 where the supervisor runs"),
    "recsys_system_ready": (GAUGE, (), "1 where everything is ready"),
    "recsys_part_ready": (GAUGE, ("part",), "1 where the part is ready, or done"),
    "recsys_part_state": (GAUGE, ("part", "state"), "1 for the state that the part is in"),
    "recsys_part_restarts_total": (COUNTER, ("part",), "Restarts of the part by the supervisor"),
    "recsys_part_lag": (GAUGE, ("part", "topic"), "Records that the part hasn't read yet"),
    "recsys_cut_step": (GAUGE, ("line", "epoch"), "The newest step on the topic steps"),
    "recsys_served_step": (GAUGE, ("line", "epoch"), "The step of the replica that was asked"),
    "recsys_dead_letters": (GAUGE, (), "Records on dead_letters"),
    "recsys_exposed_ports": (GAUGE, (), "Ports open beyond loopback"),
    UNLISTED: (GAUGE, ("part",), "What the part says that no metric tells"),
}
_BY_KEY: Final = {(said.part, said.key): said for said in SAID}
_COUNTERS: Final = {
    part: [said for said in SAID if said.part == part and said.kind == COUNTER and not said.label]
    for part in {said.part for said in SAID}
}
Samples = list[tuple[tuple[str, ...], float]]


def text_of(status: Status) -> bytes:
    """The exposition text: ``text/plain; version=0.0.4``."""
    registry = CollectorRegistry()
    registry.register(_Given(families(status)))
    return generate_latest(registry)


def families(status: Status) -> list[Metric]:
    """Every metric that has something to say, in the order of the tables."""
    facts = dict[str, Samples]()
    for name, labels, value in _facts(status):
        facts.setdefault(name, []).append((labels, value))
    said = dict[str, Samples]()
    for part in status.parts:
        for metric, label, value in _said(part):
            if metric is None:
                facts.setdefault(UNLISTED, []).append(((part.name,), value))
            else:
                said.setdefault(metric.name, []).append(((label,) if metric.label else (), value))
    told = [_family(name, *FACTS[name], facts[name]) for name in FACTS if name in facts]
    return told + [
        _family(its.name, its.kind, (its.label,) if its.label else (), its.about, said[its.name])
        for its in SAID
        if its.name in said
    ]


def _said(part: PartStatus) -> Iterator[tuple[Said | None, str, float]]:
    """(metric, its label's value, value) of a heartbeat; at last, of no metric, how many aren't listed. Parts
    count by need: what hasn't happened is told as 0, since ``increase`` can't see a series begin at 1."""
    unlisted = 0
    if part.counters or part.gauges:
        for counter in _COUNTERS.get(part.name, ()):
            if counter.key not in part.counters:
                yield counter, "", 0.0
    for kind, values in ((COUNTER, part.counters), (GAUGE, part.gauges)):
        for key, value in values.items():
            first, dot, label = key.partition(".")
            name = _FAMILIES.get((part.name, first), first) if dot else first
            metric = _BY_KEY.get((part.name, name))
            if metric is None or metric.kind != kind or bool(metric.label) != bool(dot):
                unlisted += 1
            else:
                yield metric, label, value
    yield None, "", float(unlisted)


def _facts(status: Status) -> Iterator[tuple[str, tuple[str, ...], float]]:
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


def _version(name: str, its: Version | None) -> Iterator[tuple[str, tuple[str, ...], float]]:
    if its is not None:
        yield name, (its.line, str(its.epoch)), float(its.step)


def _family(name: str, kind: str, labels: tuple[str, ...], about: str, samples: Samples) -> Metric:
    made: CounterMetricFamily | GaugeMetricFamily
    if kind == COUNTER:
        made = CounterMetricFamily(name.removesuffix("_total"), about, labels=labels)
    else:
        made = GaugeMetricFamily(name, about, labels=labels)
    for values, value in samples:
        made.add_metric(values, value)
    return made


class _Given(Collector):
    """Families that are known, as the registry asks for them."""

    def __init__(self, its: Iterable[Metric]) -> None:
        self._its = list(its)

    def collect(self) -> Iterable[Metric]:
        return self._its
