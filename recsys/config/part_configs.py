"""Configuration of smaller parts: control room, metrics, tracing, logging, drift alarms and foreign APIs."""

from dataclasses import dataclass, field

from recsys.config.checks import check
from recsys.events.event_types import ENGAGEMENT_KINDS


@dataclass(frozen=True)
class ControlRoomConfig:
    host: str = "127.0.0.1"
    port: int = 0  # of the part ``control-room``; 0: there is none, but in `recsys demo`

    def __post_init__(self) -> None:
        check(0 <= self.port <= 65_535, "control_room.port", self.port, "0 (no part) to 65535")
        check(bool(self.host), "control_room.host", self.host, "an address")


@dataclass(frozen=True)
class MetricsConfig:
    host: str = "127.0.0.1"
    port: int = (
        0  # of the part ``metrics``; 0: there is none, `recsys metrics` tells them when asked
    )

    def __post_init__(self) -> None:
        check(0 <= self.port <= 65_535, "metrics.port", self.port, "0 (no part) to 65535")
        check(bool(self.host), "metrics.host", self.host, "an address")


@dataclass(frozen=True)
class TracingConfig:
    """Off where both ``endpoint`` and ``file`` are empty."""

    share: float = 0.01  # of the requests, by a hash of their ids: the same ones in every part
    # An OTLP/HTTP receiver, e.g. http://127.0.0.1:4318/v1/traces; needs the extra "tracing".
    endpoint: str = ""
    file: str = ""  # spans as JSON lines; every part appends to it
    file_mb: float = 64.0  # MiB; then it begins anew, and the last one stays beside it
    queue: int = 4_096  # spans that wait to be sent in a process; more are dropped and counted

    def __post_init__(self) -> None:
        check(0 < self.share <= 1, "tracing.share", self.share, "above 0, at most 1")
        known = not self.endpoint or self.endpoint.startswith(("http://", "https://"))
        check(known, "tracing.endpoint", self.endpoint, "http://host:port/v1/traces, or nothing")
        check(self.file_mb > 0, "tracing.file_mb", self.file_mb, "more than 0 MiB")
        check(self.queue >= 1, "tracing.queue", self.queue, "at least 1 span")

    @property
    def on(self) -> bool:
        return bool(self.endpoint or self.file)


@dataclass(frozen=True)
class LoggingConfig:
    format: str = "json"  # one object a line; or "text", for people

    def __post_init__(self) -> None:
        check(self.format in ("json", "text"), "logging.format", self.format, "json or text")


@dataclass(frozen=True)
class DriftConfig:
    watch: bool = True
    # Whether alarms change how the line learns and publishes. Off: a raised rate changes what is learned and
    # gathered steps what replicas know, and one alarm in 175,000 examples is for nothing.
    react: bool = False
    most_rate: float = 3.0  # times the usual learning rates, right after an alarm; 1: never raised
    calm_examples: int = 50_000  # without an alarm, after which twice as many steps are gathered
    most_gathered: int = 8  # steps whose rows go out together; 1: never gathered
    # What runs in the background where the offline job should. Empty: that is told alone.
    offline_command: str = ""
    # Examples of a panel, by which forgetting is measured; 0: it isn't.
    panel_examples: int = 1_024
    panel_share: float = 0.01  # of one core, that scoring panels may take at most

    def __post_init__(self) -> None:
        check(1 <= self.most_rate <= 10, "drift.most_rate", self.most_rate, "1 to 10")
        for name in ("calm_examples", "most_gathered"):
            value = getattr(self, name)
            check(value >= 1, f"drift.{name}", value, "at least 1")
        examples, share = self.panel_examples, self.panel_share
        known = examples == 0 or 200 <= examples <= 65_536
        check(known, "drift.panel_examples", examples, "0 (not measured), or 200 to 65536")
        check(0 < share <= 1, "drift.panel_share", share, "above 0, at most 1")


@dataclass(frozen=True)
class CompatConfig:
    # Off: with them on, who reaches the port can label the newest list of anybody whose name they guess.
    gorse: bool = False  # /api/...
    metarank: bool = False  # /feedback, /rank/..., /recommend/...
    # Gorse's feedback types and Metarank's interaction types, as engagement kinds. Others are refused.
    kinds: dict[str, str] = field(
        default_factory=lambda: {
            "read": "view",
            "view": "view",
            "long_view": "long_view",
            "click": "click",
            "star": "like",
            "like": "like",
            "favorite": "like",
            "purchase": "like",
            "follow": "follow",
            "comment": "comment",
            "share": "share",
            "skip": "skip",
            "hide": "hide",
            "dislike": "hide",
        }
    )
    # The fields of an item that Gorse's Labels (where they are a list) and Categories stand in. The defaults
    # are features of the feed's own items.
    labels: str = "tags"
    categories: str = "topic"
    # Whether Metarank's /feedback takes items and users without the admin key: its clients know none. What
    # takes away always needs it.
    keyless: bool = False

    def __post_init__(self) -> None:
        for name, kind in self.kinds.items():
            check(
                kind in ENGAGEMENT_KINDS, f"compat.kinds.{name}", kind,
                f"one of {', '.join(ENGAGEMENT_KINDS)}",
            )  # fmt: skip
        for key in ("labels", "categories"):
            check(bool(getattr(self, key)), f"compat.{key}", "", "the name of an item's field")
        check(
            self.labels != self.categories, "compat.labels", self.labels,
            "another field than compat.categories",
        )  # fmt: skip
