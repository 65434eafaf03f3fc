"""Measures the AUC cost of serving embedding rows in a smaller format.

One replay learns; beside it the ranker scores each request with rows as learned, rounded to half precision,
and as int8. So all formats are evaluated on the same rows of the same learner.
"""

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from plugins.row_formats.int8_rows import Int8Rows
from plugins.row_formats.parameter_copies import Copy, SideBySide
from recsys.config.system_config import Config, digest
from recsys.features.feature_set import FeatureSet
from recsys.model.prediction_metrics import auc, paired_auc_interval
from replay.datasets.app_dataset import feature_set_of
from replay.datasets.dataset import Dataset
from replay.direct_loop import DirectLoop
from replay.predictions import Predictions
from replay.replay_report import judged_rows
from replay.replay_run import Progress, ReplayOptions, config_for, replay_with
from runtime.supervision.acceptance_file import RowFormEvidence, input_digest
from serving.replica.row_store import RowStore

FORMATS: Final = ("float32", "fp16", "int8")  # of published rows; float32 is the learned format
ROWS_PER_REQUEST: Final = 900  # distinct rows of a request with 300 candidates, approximately
_LOOKUPS: Final = 300


def format_copies(features: FeatureSet, config: Config) -> dict[str, Copy]:
    """A copy of the learner's parameters for each format."""
    copies = {}
    for name in FORMATS:
        published = "fp32" if name == "float32" else name
        server = replace(config.parameter_server, delta_format=published)
        store = Int8Rows if name == "int8" else RowStore
        copies[name] = Copy(features, replace(config, parameter_server=server), store)
    return copies


def measure(
    dataset: Dataset, options: ReplayOptions, base: Config, progress: Progress = iter
) -> RowFormEvidence:
    """Replays the data set and measures AUC, memory and lookup time of each format."""
    exact = replace(base.parameter_server, delta_format="fp32", delta_kb=0.0)
    config = config_for(dataset, options, replace(base, parameter_server=exact))
    features = feature_set_of(dataset, config)
    loop = DirectLoop(features, config)
    copies = format_copies(features, config)
    player = SideBySide(features, config, loop, copies=list(copies.values()))
    rows = replay_with(player, dataset, options, progress, loop.digest).predictions
    judged_N = _judged(dataset, rows)
    labels = np.asarray(rows.labels[dataset.labels[0]])[judged_N]
    users = np.array([str(user) for user in rows.user_id])[judged_N]
    scores = {name: copy.scores()[judged_N] for name, copy in copies.items()}
    cost = paired_auc_interval(scores["float32"], scores["int8"], labels, users)
    stores = {name: copy.rows for name, copy in copies.items()}
    return RowFormEvidence(
        features=input_digest(features),
        model=digest(base.model),
        data=dataset.name,
        rows=int(judged_N.sum()),
        users=len(np.unique(users)),
        auc={name: round(auc(scores_N, labels), 5) for name, scores_N in scores.items()},
        cost=round(cost.difference, 6),
        low=round(cost.low, 6),
        high=round(cost.high, 6),
        bytes_a_row={f: round(stores[f].nbytes / max(1, len(stores[f])), 1) for f in FORMATS},
        lookup_us=_lookup_us({name: stores[name] for name in ("float32", "int8")}),
    )


def _judged(dataset: Dataset, rows: Predictions) -> NDArray[np.bool_]:
    """Mask of the evaluated rows: the later half of the days, or of a one-day log's impressions."""
    judged = judged_rows(dataset, rows)
    if judged.all():
        judged[: len(judged) // 2] = False
    return judged


def _lookup_us(stores: Mapping[str, RowStore]) -> dict[str, float]:
    """Median time in µs to look up one request's rows, alternating between the stores."""
    draw = np.random.default_rng(0)
    keys = stores["float32"].export()[0]
    seconds: dict[str, list[float]] = {name: [] for name in stores}
    for _ in range(_LOOKUPS):
        wanted = draw.choice(keys, min(ROWS_PER_REQUEST, len(keys)), replace=False)
        for name, store in stores.items():
            began = time.perf_counter()
            store.lookup(wanted)
            seconds[name].append(time.perf_counter() - began)
    return {name: round(float(np.median(times)) * 1e6, 1) for name, times in seconds.items()}
