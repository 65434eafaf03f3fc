"""Online linear learners for ``recsys bench train``: Vowpal Wabbit and River, if the extra ``bench`` is
installed.

Each learns a logistic regression of the first label from the same examples in order, predicting first: far
less than a ranker with embeddings does, which a user would trade for their speed. Neither reads our log, so
converting an example to their form counts and reading it doesn't.
"""

import importlib.util
import time
from itertools import chain
from typing import Any, Final

from benchmarks.learning.single_process_loops import batches_of
from benchmarks.learning.synthetic_examples import FIELDS, DrawnExamples
from recsys.config.system_config import Config

ABSENT: Final = "not installed: pip install 'recsys-swipe[bench]'"
_BATCH: Final = 1024
_USER: Final = 4  # fields


def vowpal_wabbit(config: Config, examples: int) -> dict[str, Any]:
    """Logistic, user's fields crossed with the item's (``-q ui``), from text lines, in this process."""
    if importlib.util.find_spec("vowpalwabbit") is None:
        return {"absent": ABSENT}
    from vowpalwabbit import Workspace

    learner = Workspace("--loss_function logistic --link logistic -b 22 -q ui --quiet")
    drawn = _read(config, examples)
    started, busy = time.perf_counter(), time.process_time()
    for keys, label in drawn:
        user, item = " ".join(map(str, keys[:_USER])), " ".join(map(str, keys[_USER:]))
        learner.learn(f"{2 * label - 1} |u {user} |i {item}")
    figures = _figures(len(drawn), started, busy)
    learner.finish()
    return figures


def river(config: Config, examples: int) -> dict[str, Any]:
    """``LogisticRegression`` over the fields' keys, one example at a time."""
    if importlib.util.find_spec("river") is None:
        return {"absent": ABSENT}
    from river.linear_model import LogisticRegression

    learner: Any = LogisticRegression()
    drawn, names = _read(config, examples), range(FIELDS)
    started, busy = time.perf_counter(), time.process_time()
    for keys, label in drawn:
        features = dict.fromkeys(zip(names, keys, strict=True), 1.0)
        learner.predict_proba_one(features)
        learner.learn_one(features, label == 1)
    return _figures(len(drawn), started, busy)


def _figures(count: int, started: float, busy: float) -> dict[str, Any]:
    return {
        "examples_per_s": round(count / (time.perf_counter() - started), 1),
        "cpu_us_per_example": round(1e6 * (time.process_time() - busy) / count, 2),
    }


def _read(config: Config, examples: int) -> list[tuple[list[int], int]]:
    """Keys and first label of the first examples on the log."""
    pairs = chain.from_iterable(_pairs(drawn) for drawn in batches_of(config, _BATCH))
    return [pair for pair, _ in zip(pairs, range(examples), strict=False)]


def _pairs(drawn: DrawnExamples) -> list[tuple[list[int], int]]:
    labels = drawn.labels_NK[:, 0].astype(int).tolist()
    return list(zip(drawn.keys_NF.tolist(), labels, strict=True))
