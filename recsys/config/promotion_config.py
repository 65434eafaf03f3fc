"""Thresholds by which ``experiments.promotion`` decides about candidates."""

from dataclasses import dataclass

from recsys.config.checks import Section, bounded, check, fraction, limited


@dataclass(frozen=True)
class PromotionConfig(Section):
    section = "promotion"
    manual: bool = False  # whether a person must approve each promotion
    # Of the example stream that candidates score, by a hash of step and lane.
    share: float = fraction(0.25)
    # Probability that any bound of a comparison is ever wrong.
    alpha: float = limited(0.05, lambda alpha: 0 < alpha < 0.5, "between 0 and 0.5")
    block_examples: int = bounded(128, 1)  # examples per block whose AUCs are compared
    least_examples: int = bounded(2_000, 1)  # compared before any decision in a candidate's favour
    most_examples: int = 200_000  # after which an undecided candidate is given up
    # Non-inferiority margins: AUC; nats per example; nats per example of any segment.
    auc_margin: float = bounded(0.002, 0)
    loss_margin: float = bounded(0.002, 0)
    segment_margin: float = bounded(0.01, 0)
    recall_examples: int = bounded(200, 1)  # engaged items per recall measurement
    recall_margin: float = bounded(0.02, 0)  # tolerated loss of retrieval recall of engaged items
    # Tolerated distance of predicted / observed from 1, if live's is closer to 1.
    calibration: float = bounded(0.1, 0)
    # A canary answers this share of users until this many items were shown to them.
    canary_share: float = fraction(0.05)
    canary_examples: int = bounded(1_000, 1)
    # For canary and live alike, items count this many seconds after they were shown, later engagements don't:
    # quick swipes arrive first, so the line that started last would look worse.
    settle_s: float = bounded(60.0, 0)
    engagement_margin: float = bounded(0.03, 0)  # loss of engagement rate that is a breach
    # Tolerated share of a canary's lists without its ranker, beyond that of live's lists.
    degraded: float = bounded(0.05, 0)
    # After a promotion the replaced line learns beside the new one until this many examples were compared (0:
    # not at all) or this many hours passed (0: no limit), since the log keeps what it would relearn. It takes
    # over again if the new line is known to be worse by more than these margins: AUC; nats per example. The
    # live line chooses which items are scored, and shows overrated ones more often: if both are
    # overconfident, an equal live line looks worse than it is (docs/explanation/promotion.md).
    guard_examples: int = bounded(20_000, 0)
    guard_hours: float = bounded(24.0, 0)
    guard_auc_margin: float = bounded(0.02, 0)
    guard_loss_margin: float = bounded(0.01, 0)
    # Tolerated loss of engagement rate since before the promotion. Wide, since times differ.
    guard_engagement_margin: float = bounded(0.1, 0)
    # Whether a live line goes back by itself where its lists are behind simple ones, or it learns no positive
    # example (experiments/promotion/line_guard.py).
    line_guard: bool = True
    # Sanity gates (experiments/evidence/gates.py), relative to live.
    score_shift: float = bounded(1.0, 0)  # difference of mean logits of the items that live served
    score_spread: float = bounded(3.0, 1)  # ratio of the spreads of logits, or its inverse
    latency: float = bounded(1.5, 1)  # ratio of ranking times
    memory: float = bounded(2.0, 1)  # ratio of bytes
    concentration: float = bounded(3.0, 1)  # ratio of the shares of the most frequent picks

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.most_examples >= self.least_examples, "promotion.most_examples",
              self.most_examples, f"at least least_examples, {self.least_examples}")  # fmt: skip
