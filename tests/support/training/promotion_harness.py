"""A log, a promoter on it, and whoever appends what it decides: what candidates said is drawn."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.studies.promotion.simulated_pairs import Pair, Stream
from experiments.statistics.comparison import PairedPredictions
from recsys.config.promotion_config import PromotionConfig
from recsys.config.system_config import Config
from recsys.events.control_records import Control, Decision, Live
from recsys.events.hashing import key_of
from recsys.events.records import CONTROL, EXAMPLES, SCORES, STEPS, Example, Scores, Step, pack, topics
from recsys.features.feature_set_file import feature_set
from recsys.log.protocol import Append, MemoryLog
from training.candidates.promoter import Promoter
from training.lines.control import ControlReader

BETTER, WORSE, EQUAL = Pair(1.2, 0.3), Pair(0.3, 1.2), Pair(0.7, 0.7)
RULES = PromotionConfig(
    least_examples=1_000, canary_examples=50, settle_s=1.0, auc_margin=0.01, engagement_margin=0.2
)


class Town:
    """A log, a promoter on it, and whoever appends what it decides."""

    def __init__(self, folder: Path, rules: PromotionConfig = RULES) -> None:
        self.log, self.now_ms = MemoryLog(), 1_000
        for topic in topics(1):
            self.log.create(topic)
        self.config = replace(Config(), state=str(folder), promotion=rules)
        self.step = 0
        self.restart()
        self.say(Live(line="main", epoch=0))

    def restart(self) -> None:
        self.promoter = Promoter(self.log, self.config, feature_set(self.config), lambda: self.now_ms)
        self._control = ControlReader(self.log)

    def say(self, *records: Control) -> None:
        self.log.append(CONTROL, [Append(0, b"", pack(record)) for record in records])

    def scored(self, line: str, pair: Pair, steps: int, nan: bool = False, epoch: int = 0) -> None:
        stream = Stream(pair, key_of("line", line) % 1_000, users=300)
        for _ in range(steps):
            self.step += 1
            self.log.append(
                SCORES, [Append(0, b"", pack(said_of(line, stream.step(), self.step, nan, epoch)))]
            )
            self.cut(self.step, epoch)

    def cut(self, step: int, epoch: int = 0) -> None:
        record = Step(
            line="main", epoch=epoch, step=step, ranges=[], examples=0, lanes=1, time_ms=step, config=""
        )
        self.log.append(STEPS, [Append(0, b"", pack(record))])

    def show(
        self, served_by: str, count: int, liked: float, predicted: bytes = b"0000", users: int = 40
    ) -> None:
        draw, offset = np.random.default_rng(count), self.log.end(EXAMPLES, 0)
        records = []
        for n in range(count):
            example = Example(
                partition=0, offset=n, index=0, labels=[float(draw.random() < liked), 0.0, 0.0],
                sequence=offset + n + 1, request_id=f"r{n}", user_id=f"{served_by}{n % users}",
                item_id="i", surface="feed", shown_ms=self.now_ms + n, closed_ms=self.now_ms + n + 10,
                served_by=served_by, predicted=predicted,
            )  # fmt: skip
            records.append(Append(0, b"", pack(example)))
        self.log.append(EXAMPLES, records)

    def opinion(self, line: str) -> str:
        """The reason of the current verdict on a line."""
        return self.promoter.opinion(self.promoter.lifecycle.candidates[line])

    def decide(self) -> list[Control]:
        """Turns until nothing more is decided."""
        found: list[Control] = []
        while True:
            for said in self._control.turn():
                self.promoter.fold(said)
            decided = self.promoter.turn()
            if not decided:
                return found
            self.say(*decided)
            found += decided


def said_of(line: str, pairs: PairedPredictions, step: int, nan: bool = False, epoch: int = 0) -> Scores:
    candidate = pairs.candidate_N.astype(np.float32)
    if nan:
        candidate[0] = np.nan
    return Scores(
        line=line, against=("main", epoch), step=step, time_ms=step,
        users=pairs.users_N.astype(np.int64).tobytes(), live=pairs.live_N.astype(np.float32).tobytes(),
        candidate=candidate.tobytes(), labels=pairs.labels_N.astype(np.uint8).tobytes(),
        segments=np.zeros(len(pairs), np.int64).tobytes(), names=["new viewers"],
        hits=np.full(3, 3, np.uint8).tobytes(), hit_users=np.arange(3).tobytes(),
    )  # fmt: skip


def told(found: list[Control]) -> list[tuple[str, str, str]]:
    return [(its.line, its.verdict, its.to) for its in found if isinstance(its, Decision)]
