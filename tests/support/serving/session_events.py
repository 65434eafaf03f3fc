"""Impressions and engagements for session folds."""

from dataclasses import replace
from typing import Any

import numpy as np

from recsys.events.event_types import Engagement, Impression, ServedItem
from recsys.features.feature_set import FeatureSet
from tests.support.training.small_feed import FEATURES, SCHEMA

ALL_SHOWN = FeatureSet(replace(SCHEMA, shown_by="impression"), "all", history=4)

NOW_MS = 1_700_000_000_000


def keys_of(item: int, features: FeatureSet = FEATURES) -> np.ndarray:
    fields = {"author": f"a{item % 3}", "tags": [f"t{item % 4}"], "duration_ms": 9_000}
    return features.item_keys(f"v{item}", fields)


def shown(request: str, *items: int, at_ms: int = NOW_MS, surface: str = "feed") -> Impression:
    served = [ServedItem(item_id=f"v{item}") for item in items]
    return Impression(time_ms=at_ms, request_id=request, user_id="u", items=served, surface=surface)


def did(request: str, item: int, kind: str, at_ms: int = NOW_MS, **more: Any) -> Engagement:
    return Engagement(time_ms=at_ms, request_id=request, user_id="u", item_id=f"v{item}", kind=kind, **more)
