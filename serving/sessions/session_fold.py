"""Folds one event into a session; shared by the live fold and by reconstructions of past sessions."""

from collections.abc import Callable

import numpy as np

from recsys.events.event_types import Engagement, Event, Impression, Preference, User
from recsys.events.hashing import Id
from recsys.features.feature_set import FeatureSet, Keys
from recsys.features.session import Session

KeysOf = Callable[[Id], Keys]  # keys of an item (I,), as its fields are when an event is folded


def fold_event(session: Session, event: Event, keys_of: KeysOf) -> None:
    """Folds an event of the session's user, except an erasure, which starts a new session."""
    if isinstance(event, User):
        session.fold_user(event)
    elif isinstance(event, Preference):
        session.fold_preference(event)
    elif isinstance(event, Impression):
        session.fold_impression(event, shown_keys(session.features, event, keys_of))
    elif isinstance(event, Engagement):
        session.fold_engagement(event, keys_of(event.item_id))


def shown_keys(features: FeatureSet, impression: Impression, keys_of: KeysOf) -> Keys:
    """Keys of the items that an impression counts as shown (N, I): all, or none if views count instead."""
    shown = impression.items if features.schema.shown_by == "impression" else []
    keys = np.zeros((len(shown), features.item_columns), np.int64)
    for row, item in zip(keys, shown, strict=True):
        row[:] = keys_of(item.item_id)
    return keys
