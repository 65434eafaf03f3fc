"""Whether the director watches for drift, and what an alarm may bring about."""

from dataclasses import dataclass

from recsys.config.checks import check as _check


@dataclass(frozen=True)
class DriftRules:
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
        _check(1 <= self.most_rate <= 10, "drift.most_rate", self.most_rate, "1 to 10")
        for name in ("calm_examples", "most_gathered"):
            value = getattr(self, name)
            _check(value >= 1, f"drift.{name}", value, "at least 1")
        examples, share = self.panel_examples, self.panel_share
        known = examples == 0 or 200 <= examples <= 65_536
        _check(known, "drift.panel_examples", examples, "0 (not measured), or 200 to 65536")
        _check(0 < share <= 1, "drift.panel_share", share, "above 0, at most 1")
