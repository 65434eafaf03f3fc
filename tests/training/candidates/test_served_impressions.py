"""Engagement rates of two lines' impressions, from examples of which negatives were sampled."""

from experiments.promotion.kinds.line_state import ServedLines
from recsys.config.promotion_config import PromotionConfig
from recsys.config.system_config import Config
from recsys.events.records import EXAMPLES, Example, pack, topics
from recsys.log.protocol import Append, MemoryLog
from training.candidates.served_impressions import ServedImpressions

LABELS = ("long_view", "like")
RATE = 0.1
RANKED = bytes(4)  # a prediction


def example(n: int, line: str, labels: tuple[int, int], sampled_out: bool = False) -> Example:
    return Example(
        partition=0, offset=n, index=0, sequence=n, request_id=f"r{n}", user_id=f"u{n % 50}",
        item_id="v", surface="feed", shown_ms=n, closed_ms=n + 10, labels=[*map(float, labels)],
        served_by=line, sampling_rate=RATE, sampled_out=sampled_out, predicted=RANKED if any(labels) else b"",
    )  # fmt: skip


def test_sampled_negatives_represent_all_that_was_shown() -> None:
    """Of 1,000 items of each line 100 are liked, and 200 or 600 of the others viewed long. With the kept
    negatives alone a like would be rarer where views are longer."""
    log = MemoryLog()
    for topic in topics(1):
        log.create(topic)
    rows = []
    for line, views in (("main/0", 200), ("cand/0", 600)):
        rows += [example(n, line, (0, 1)) for n in range(100)]
        rows += [example(n, line, (1, 0)) for n in range(views)]
        negatives = 900 - views
        kept = [example(n, line, (0, 0)) for n in range(negatives // 10)]
        rows += [*kept, *(example(n, line, (0, 1), True) for n in range(20))]
    log.append(EXAMPLES, [Append(0, b"k", pack(row)) for row in rows])
    config = Config(promotion=PromotionConfig(settle_s=0.01))
    served = ServedImpressions(log, ServedLines("cand/0", "main/0", 0, 0.05), LABELS, config)
    log.append(EXAMPLES, [Append(0, b"k", pack(example(10_000, "other/0", (0, 0))))])
    served.read()
    result = served.rates.result()
    assert round(result.gained["long_view"].mean, 9) == 0.4
    assert round(result.gained["like"].mean, 9) == 0.0
    assert (result.degraded, result.live_degraded) == (0.3, 0.7)  # all that nobody engaged with
    assert (result.examples, result.live_examples) == (100 + 600 + 30, 100 + 200 + 70)
