"""Views for ``recsys bench freshness``: a catalogue, and lists with features of the feed's size, from a seed.

The keys are those of a real catalogue, so that steps touch realistic numbers of rows. Watch times and likes
follow a planted taste of each item.
"""

from typing import Any, Final

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from benchmarks.learning.bench_join import FEATURES, draw_events
from recsys.config.system_config import Config
from recsys.events.event_types import Event, FeatureBlock, Impression, Item
from recsys.events.hashing import key_of
from recsys.features.catalogue import Catalogue
from recsys.features.feature_builder import FeatureBuilder
from recsys.features.feature_set_file import feature_set

ITEMS: Final = 20_000  # as the lists of the joiner's bench draw them
START_MS: Final = 1_700_000_000_000


def draw_items(seed: int) -> list[Item]:
    """The catalogue: every item has an author, three tags and a duration."""
    draw = np.random.default_rng(seed)
    items = []
    for n in range(ITEMS):
        tags = [f"t{tag}" for tag in draw.integers(0, 200, 3)]
        fields: dict[str, Any] = {"author": f"a{draw.integers(2_000)}", "tags": tags}
        fields["duration_ms"] = int(draw.integers(5_000, 60_000))
        items.append(Item(time_ms=START_MS, item_id=f"v{n}", fields=fields))
    return items


def draw_views(config: Config, items: list[Item], count: int, seed: int) -> list[Event]:
    """At least ``count`` events in time order, each list with features of its own items and its user."""
    features, draw = feature_set(config), np.random.default_rng(seed)
    if features.digest != FEATURES.digest:
        raise ValueError(
            f"feature set is {features.digest}, expected {FEATURES.digest}: leave model.features, "
            "sessions.history and the data's schema as they are for this bench"
        )
    catalogue = Catalogue(features)
    for item in items:
        catalogue.apply(item)
    history = catalogue.keys[:, [0, *features.group_columns()]]
    return [
        replace(event, features=_block(event, catalogue, history, draw))
        if isinstance(event, Impression)
        else event
        for event in draw_events(count, seed)
    ]


def _block(
    shown: Impression, catalogue: Catalogue, history: NDArray[np.int64], draw: np.random.Generator
) -> FeatureBlock:
    features = FEATURES
    user = np.zeros(features.user_columns, np.int64)
    user[0] = key_of("user", shown.user_id)
    rows = [catalogue.ensure(served.item_id) for served in shown.items]
    past = history[draw.integers(0, ITEMS, features.history_length)]
    outcomes = draw.random((features.history_length, features.outcomes), np.float32)
    dense = draw.random((len(rows), FeatureBuilder(features).dense_width), np.float32)
    return FeatureBlock(
        feature_set=features.digest,
        user_keys=user.tobytes(),
        item_keys=catalogue.keys[rows].tobytes(),
        history=past.tobytes(),
        outcomes=outcomes.tobytes(),
        dense=dense.tobytes(),
    )
