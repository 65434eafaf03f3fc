"""``recsys bench features``: 30 declared features over 5 entities. Events a second through each fold, and the
time of the features of a request, beside those of the rates alone; both of one core's own time."""

import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from recsys.app.app_file import app_of
from recsys.events.event_types import Engagement, Event, Impression, Item, ServedItem, User
from recsys.features.catalogue import Catalogue
from recsys.features.feature_builder import FeatureBuilder
from recsys.features.feature_set import FeatureSet
from recsys.features.item_counters import ItemCounters
from recsys.features.session import Session

_ITEMS: Final = 5_000
_USERS: Final = 500
_START_MS: Final = 1_700_000_000_000
_ROUNDS: Final = 300  # requests whose features are timed
_RATES: Final = """
events: {{click: positive, purchase: {{label: positive, value: amount}}, view: none}}
fields:
  item: {{category: category, brand: category, price: number}}
  user: {{region: category, age: number}}
  context: {{page: category, device: category, battery: number}}
groups: [category, brand]
shown: {shown}
features:
  half_lives: [1h, 24h]
  rates: [item, category, user, user×category, device×category]
"""
# With the five rates and five values of each entity: 30.
_OPERATORS: Final = """
  age: true
  numbers: [user.age, context.battery]
  against: {item: category, user×category: category, device×category: category}
  last: {purchase: [item, user, user×category], click: [item, user×category]}
  distinct: {click: {item: user, category: user, user: [category, brand]}}
  expressions:
    gap: {difference: [item/click.1h, category/click.1h]}
    dear: {ratio: [item.price, user.age]}
    band: {bucket: item.price, at: [1, 2, 3, 4]}
    novel: {log: item.age}
  functions:
    match: {call: "benchmarks.answers.bench_features:match@1", of: [item.price, user.age]}
"""


def match(price: NDArray[np.float32], age: NDArray[np.float32]) -> NDArray[np.float32]:
    """An app's own function."""
    distance: NDArray[np.float32] = np.abs(price - age)
    return distance


def measure_features(events: int, candidates: int, length: int, seed: int) -> dict[str, Any]:
    """Figures of the declared features and of rates alone. ``length``: items of a list."""
    figures: dict[str, Any] = {"events": events, "candidates": candidates, "length": length}
    for shown in ("view", "list"):
        for name, operators in (("rates", ""), ("declared", _OPERATORS)):
            features = app_of(_RATES.format(shown=shown) + operators).feature_set()
            measured = _measure(features, events, candidates, length, seed)
            figures[f"{name}, shown by {shown}"] = {"columns": len(features.dense_names)} | measured
    return figures


def _measure(
    features: FeatureSet, events: int, candidates: int, length: int, seed: int
) -> dict[str, Any]:
    catalogue, counters = Catalogue(features), ItemCounters(features)
    for item in _items():
        catalogue.apply(item)
    sessions = {f"u{n}": Session(f"u{n}", features) for n in range(_USERS)}
    stream = list(_events(events, length, seed))
    folds: list[tuple[str, Callable[[Event], None]]] = [
        ("counters", lambda event: _count(counters, catalogue, event)),
        ("sessions", lambda event: _fold(sessions[str(event.user_id)], catalogue, event)),  # type: ignore[union-attr]
    ]
    figures: dict[str, Any] = {}
    for name, fold in folds:
        began_s = time.process_time()  # of a core, whatever else the machine does
        for event in stream:
            fold(event)
        figures[f"{name}_events_per_s"] = round(len(stream) / (time.process_time() - began_s))
    builder, indices = FeatureBuilder(features), np.arange(candidates) % _ITEMS
    context = {"page": "home", "device": "phone", "battery": 50}
    took_ms = []
    for n in range(_ROUNDS):
        began_s = time.process_time()
        builder.build(sessions[f"u{n % _USERS}"], "feed", context, indices, catalogue,
                      counters.counters, _START_MS + 10**8 + n)  # fmt: skip
        took_ms.append(1000 * (time.process_time() - began_s))
    median, slow = (round(float(np.percentile(took_ms, p)), 3) for p in (50, 95))
    return figures | {"features_ms_p50": median, "features_ms_p95": slow}


def _items() -> Iterator[Item]:
    for n in range(_ITEMS):
        fields = {"category": f"c{n % 40}", "brand": f"b{n % 300}", "price": float(n % 90)}
        yield Item(time_ms=_START_MS - n, item_id=f"v{n}", fields=fields)


def _events(number: int, length: int, seed: int) -> Iterator[Event]:
    """Profiles, then lists, each followed by a view of every item, clicks of a fifth and a few purchases."""
    draw = np.random.default_rng(seed)
    for n in range(_USERS):
        fields = {"region": f"r{n % 9}", "age": 20 + n % 50}
        yield User(time_ms=_START_MS, user_id=f"u{n}", fields=fields)
    n = made = 0
    while made < number:
        n += 1
        user, shown = int(draw.integers(_USERS)), draw.integers(0, _ITEMS, length).tolist()
        about: dict[str, Any] = {"request_id": f"r{n}", "user_id": f"u{user}"}
        device = ("phone", "desktop", "tablet")[user % 3]
        context = {"page": ("home", "search")[n % 2], "device": device, "battery": n % 100}
        items = [ServedItem(item_id=f"v{item}") for item in shown]
        at_ms = _START_MS + 1_000 * n
        yield Impression(time_ms=at_ms, items=items, context=context, **about)
        made += 1
        kinds = draw.random(length).tolist()
        for item, share in zip(shown, kinds, strict=True):
            done: dict[str, Any] = {"time_ms": at_ms + 100, "item_id": f"v{item}"} | about
            wanted = ["view", "click", "purchase"][: 1 + (share < 0.2) + (share < 0.03)]
            for kind in wanted:
                more: dict[str, Any] = {"watch_ms": 3_000} if kind == "view" else {}
                more |= {"value": 9.5} if kind == "purchase" else {}
                yield Engagement(kind=kind, **done, **more)
                made += 1


def _count(counters: ItemCounters, catalogue: Catalogue, event: Event) -> None:
    if isinstance(event, User):
        counters.user(event)
    elif isinstance(event, Impression):
        counters.impression(event, _shown(catalogue, event))
    elif isinstance(event, Engagement):
        counters.engagement(event, catalogue.keys[catalogue.ensure(event.item_id)])


def _fold(session: Session, catalogue: Catalogue, event: Event) -> None:
    if isinstance(event, User):
        session.fold_user(event)
    elif isinstance(event, Impression):
        session.fold_impression(event, _shown(catalogue, event))
    elif isinstance(event, Engagement):
        session.fold_engagement(event, catalogue.keys[catalogue.ensure(event.item_id)])


def _shown(catalogue: Catalogue, event: Impression) -> NDArray[np.int64]:
    keys: NDArray[np.int64] = catalogue.keys[[catalogue.ensure(i.item_id) for i in event.items]]
    return keys
