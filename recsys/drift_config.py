"""Whether the director watches for drift, and what an alarm may bring about."""

from dataclasses import dataclass

from recsys.checks import check as _check


@dataclass(frozen=True)
class DriftRules:
    watch: bool = True
    # Whether alarms change how the line learns and publishes. Off: a raised rate changes what is learned and
    # gathered steps what replicas know, and one alarm in 175,000 examples is for nothing.
    react: bool = False
    most_rate: float = 3.0  # times the usual learning rates, right after an alarm; 1: never raised
    calm_examples: int = 50_000  # without an alarm, after which twice as many steps are gathered
    most_gathered: int = 8  # steps whose rows go out together; 1: never gathered
    # What runs in the background where the offline job should; ``{until}`` in it is an event time, a minute
    # before the alarm's. Empty: it is told alone.
    offline_command: str = ""

    def __post_init__(self) -> None:
        _check(1 <= self.most_rate <= 10, "drift.most_rate", self.most_rate, "1 to 10")
        for name in ("calm_examples", "most_gathered"):
            value = getattr(self, name)
            _check(value >= 1, f"drift.{name}", value, "at least 1")
