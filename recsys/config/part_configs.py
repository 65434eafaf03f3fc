"""Configuration of smaller parts: workers, control room, metrics, tracing, logging, drift, foreign APIs."""

from dataclasses import dataclass, field
from typing import Final

from recsys.config.checks import Section, bounded, check, choice, fraction, limited, positive
from recsys.events.event_types import ENGAGEMENT_KINDS


@dataclass(frozen=True)
class ControlRoomConfig(Section):
    section = "control_room"
    host: str = limited("127.0.0.1", bool, "an address")
    # Of the part ``control-room``; 0: no such part, except in `recsys demo`.
    port: int = bounded(0, 0, 65_535)


@dataclass(frozen=True)
class WorkersConfig(Section):
    """Processes of each fold, which share the partitions of ``events``; of ``shadow``, which share lines."""

    section = "workers"
    session_fold: int = bounded(1, 1)
    joiner: int = bounded(1, 1)
    counters: int = bounded(1, 1)
    archive: int = bounded(1, 1)
    shadow: int = bounded(1, 1)

    def names(self, part: str) -> list[str]:
        """Names of a part's processes: ``joiner``, or ``joiner.0`` and ``joiner.1``. Several workers of
        ``counters`` have one process more, the last, which adds up."""
        workers = getattr(self, part.replace("-", "_"), 1)
        processes = workers + (part == "counters" and workers > 1)
        return [part] if workers == 1 else [f"{part}.{number}" for number in range(processes)]


ONE_WORKER: Final = WorkersConfig()


@dataclass(frozen=True)
class MetricsConfig(Section):
    section = "metrics"
    host: str = limited("127.0.0.1", bool, "an address")
    # Of the part ``metrics``; 0: no such part, `recsys metrics` prints them on demand.
    port: int = bounded(0, 0, 65_535)


@dataclass(frozen=True)
class TracingConfig(Section):
    """Off if both ``endpoint`` and ``file`` are empty."""

    section = "tracing"
    # Of requests, sampled by a hash of their ids: the same in every part.
    share: float = fraction(0.01)
    # An OTLP/HTTP receiver, e.g. http://127.0.0.1:4318/v1/traces.
    endpoint: str = limited(
        "",
        lambda url: not url or url.startswith(("http://", "https://")),
        "http://host:port/v1/traces, or nothing",
    )
    file: str = ""  # spans as JSON lines; every part appends to it
    # MiB before the file is rotated; the previous one is kept.
    file_mb: float = positive(64.0, "more than 0 MiB")
    # Spans that wait to be sent in a process; more are dropped and counted.
    queue: int = bounded(4_096, 1)

    @property
    def on(self) -> bool:
        return bool(self.endpoint or self.file)


@dataclass(frozen=True)
class LoggingConfig(Section):
    section = "logging"
    format: str = choice("json", "json", "text")  # one object per line; or "text", for people


@dataclass(frozen=True)
class DriftConfig(Section):
    """Settings of drift detection by the director, and of panels that measure forgetting."""

    section = "drift"
    watch: bool = True
    # Event time from which on examples are judged: after a warm-up with data of other people.
    from_ms: int = bounded(0, 0)
    # Examples of a panel, by which forgetting is measured; 0: not measured.
    panel_examples: int = limited(
        1_024, lambda n: n == 0 or 200 <= n <= 65_536, "0 (not measured), or 200 to 65536"
    )


@dataclass(frozen=True)
class CompatConfig:
    """Routes for clients of Gorse and Metarank, and the mapping of their vocabulary."""

    # Off by default: with them on, anyone who reaches the port can label the newest list of a user whose name
    # they guess.
    gorse: bool = False  # /api/...
    metarank: bool = False  # /feedback, /rank/..., /recommend/...
    # Engagement kind by Gorse feedback type or Metarank interaction type. Other types are rejected.
    kinds: dict[str, str] = field(
        default_factory=lambda: {
            "read": "view", "view": "view", "long_view": "long_view", "click": "click",
            "star": "like", "like": "like", "favorite": "like", "purchase": "like",
            "follow": "follow", "comment": "comment", "share": "share", "skip": "skip",
            "hide": "hide", "dislike": "hide",
        }
    )  # fmt: skip
    # Item fields that receive Gorse's Labels (if a list) and Categories. The defaults are features of the
    # feed's own items.
    labels: str = "tags"
    categories: str = "topic"
    # Whether Metarank's /feedback accepts items and users without the admin key, which its clients don't
    # send. Removals always need it.
    keyless: bool = False

    def __post_init__(self) -> None:
        kinds = f"one of {', '.join(ENGAGEMENT_KINDS)}"
        for name, kind in self.kinds.items():
            check(kind in ENGAGEMENT_KINDS, f"compat.kinds.{name}", kind, kinds)
        for key in ("labels", "categories"):
            check(bool(getattr(self, key)), f"compat.{key}", "", "the name of an item's field")
        differ = self.labels != self.categories
        check(differ, "compat.labels", self.labels, "another field than compat.categories")
