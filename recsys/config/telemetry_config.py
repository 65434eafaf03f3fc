"""What is told of the system's own work: traces, and how logs are written."""

from dataclasses import dataclass

from recsys.config.checks import check


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
