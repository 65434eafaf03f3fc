"""Where the parts' metrics are served."""

from dataclasses import dataclass

from recsys.config.checks import check


@dataclass(frozen=True)
class MetricsConfig:
    host: str = "127.0.0.1"
    port: int = (
        0  # of the part ``metrics``; 0: there is none, `recsys metrics` tells them when asked
    )

    def __post_init__(self) -> None:
        check(0 <= self.port <= 65_535, "metrics.port", self.port, "0 (no part) to 65535")
        check(bool(self.host), "metrics.host", self.host, "an address")
