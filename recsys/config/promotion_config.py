"""How a candidate proves itself, and by how much: what ``experiments.promotion`` decides by."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PromotionConfig:
    manual: bool = False  # whether a person must approve each promotion
    share: float = 0.25  # of the example stream that candidates score, by a hash of step and lane
    alpha: float = 0.05  # the chance that any bound of a comparison is ever wrong
    block_examples: int = 128  # whose AUCs are compared with each other
    least_examples: int = 2_000  # compared, before anything is decided in a candidate's favour
    most_examples: int = 200_000  # after which one that couldn't be told apart is given up
    # How much worse a candidate may be where that isn't known to be nothing: AUC; nats an example; nats an
    # example of any one segment.
    auc_margin: float = 0.002
    loss_margin: float = 0.002
    segment_margin: float = 0.01
    recall_examples: int = 200  # engaged items that are looked for at once
    recall_margin: float = 0.02  # of engaged items that it would retrieve: how much less is worse
    calibration: float = (
        0.1  # how far predicted over happened may be from 1, where live's is nearer
    )
    # A canary: the share of users who are answered by the candidate, until so many items were shown to them.
    canary_share: float = 0.05
    canary_examples: int = 1_000
    # Of canary and live alike, what was shown is counted so many seconds later, and what took longer isn't:
    # quick swipes come first, so whatever began last would look worse.
    settle_s: float = 60.0
    engagement_margin: float = 0.03  # of shown items with an engagement: how many fewer is a breach
    canary_margin: float = 0.15  # how many fewer must be ruled out before it goes to all
    degraded: float = 0.05  # the share of a canary's lists that may go without its ranker
    # A new live line: what it replaced learns beside it until so many examples were compared (0: it doesn't)
    # or so many hours are over (0: however long that takes), for the log keeps what it would learn again. It
    # takes its place again where live is known to be worse by more than this: AUC; nats an example.
    # Live chooses what is scored, and what it overrates is shown more often: where both are too sure of
    # themselves, an equal one looks worse than it is (docs/explanation/promotion.md).
    guard_examples: int = 20_000
    guard_hours: float = 24.0
    guard_auc_margin: float = 0.02
    guard_loss_margin: float = 0.01
    # Of shown items with an engagement: how many fewer than before it was live. Wide, for times differ.
    guard_engagement_margin: float = 0.1
    guard_calibration: float = 0.5  # how far its predicted over happened may be from 1
    # Sanity gates (experiments/promotion/gates.py).
    score_shift: float = 1.0  # how far the mean logit of what live served may be from live's
    score_spread: float = (
        3.0  # how many times live's the spread of the logits may be, or its inverse
    )
    latency: float = 1.5  # how many times live's model it may take to rank
    memory: float = 2.0  # how many times live's bytes it may have
    concentration: float = 3.0  # how many times live's the share of the commonest picks may be

    def __post_init__(self) -> None:
        for name in ("share", "canary_share"):
            value = getattr(self, name)
            _check(0 < value <= 1, name, value, "more than 0, up to 1")
        _check(0 < self.alpha < 0.5, "alpha", self.alpha, "a probability between 0 and 0.5")
        for name in ("block_examples", "least_examples", "canary_examples", "recall_examples"):
            _check(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        _check(self.guard_examples >= 0, "guard_examples", self.guard_examples, "0 or more")
        _check(self.most_examples >= self.least_examples, "most_examples", self.most_examples,
               f"at least least_examples, {self.least_examples}")  # fmt: skip
        margins = (
            "auc_margin",
            "loss_margin",
            "segment_margin",
            "recall_margin",
            "engagement_margin",
            "canary_margin",
            "guard_auc_margin",
            "guard_loss_margin",
            "guard_engagement_margin",
            "guard_calibration",
            "guard_hours",
        )
        for name in (*margins, "settle_s", "calibration", "degraded", "score_shift"):
            value = getattr(self, name)
            _check(value >= 0, name, value, "0 or more")
        for name in ("score_spread", "latency", "memory", "concentration"):
            value = getattr(self, name)
            _check(value >= 1, name, value, "1 (as live) or more")


def _check(holds: bool, name: str, value: object, expected: str) -> None:
    if not holds:
        raise ValueError(f"promotion.{name} is {value!r}, expected {expected}")
