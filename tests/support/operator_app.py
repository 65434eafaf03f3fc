"""An app that declares each operator once, a past of it as a server would have written it, and a function."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from examples.short_video.feature_replay import FeatureReplay
from recsys.app.app_file import app_of
from recsys.events.event_types import Engagement, Event, Impression, Item, ServedItem, User
from recsys.events.hashing import uniforms
from tests.support.past_events import ToyPast

DEFINITION = """
events:
  click: positive
  buy: {label: positive, value: amount}
  look: none
fields:
  item: {brand: category, colours: list, material: category, price: number}
  user: {region: category, hobby: category, age: number}
  context: {page: category, device: category, battery: number}
groups: [brand, colours]
shown: list
history: {of: [click], length: 5}
features:
  half_lives: [1h, 24h]
  rates:
    - all
    - user
    - item
    - brand
    - material
    - user×item
    - user×material
    - user×device
    - device×brand
    - region×colours
    - region×device
    - item×context
  age: true
  near: true
  position: true
  list: [item]
  numbers: [user.age, context.battery]
  counts: [look]
  against: {item: [brand, material], user×material: material, brand: user}
  last:
    buy: [item, user, user×item, device×brand]
    look: [region×colours, user×material, region×device, all]
  distinct:
    click: {item: user, region×colours: user, user: [brand, material, item]}
    look: {material: user}
  expressions:
    gap: {difference: [item/click.1h, brand/click.1h]}
    dear: {ratio: [item.price, user.age]}
    log_gap: {log: gap}
    band: {bucket: item/shown.24h, at: [0.1, 0.3, 0.5]}
  functions:
    match: {call: "tests.support.operator_app:match@2", of: [item.price, user.age, gap]}
"""


def match(
    price: NDArray[np.float32], age: NDArray[np.float32], gap: NDArray[np.float32]
) -> NDArray[np.float32]:
    """An app's own function."""
    return np.abs(price - age) + np.tanh(gap)


match.version = "2"  # type: ignore[attr-defined]
match.columns = 3  # type: ignore[attr-defined]


APP = app_of(DEFINITION)
FEATURES = APP.feature_set()
START_MS = 1_700_000_000_000
ITEMS, USERS = 9, 8
_PAGES, _DEVICES = ("home", "search"), ("phone", "desk", None)


def events(requests: int = 60) -> Iterator[Event]:
    """A stream of everything; each time is another one."""
    for n in range(ITEMS):
        fields: dict[str, Any] = {"brand": f"b{n % 4}", "colours": [f"c{n % 3}", f"c{n % 2 + 3}"]}
        fields |= {"material": f"m{n % 2}"} if n else {}
        yield Item(time_ms=START_MS + n, item_id=f"v{n}", fields=fields | {"price": 3.0 + n * n})
    for n in range(USERS):
        yield User(time_ms=START_MS + 100 + n, user_id=f"u{n}", fields=profile(n))
    draws = uniforms(3, np.arange(requests, dtype=np.int64), 16)
    for n, draw in enumerate(draws):
        time_ms, user = START_MS + 1_000 + 600_000 * n, int(draw[0] * USERS)
        about: dict[str, Any] = {"request_id": f"r{n}", "user_id": f"u{user}"}
        if n == requests // 2:
            yield User(time_ms=time_ms - 5, user_id=f"u{user}", fields=profile(user + 1))
        shown = [f"v{(int(draw[1] * ITEMS) + i) % ITEMS}" for i in range(3)]
        served = [ServedItem(item_id=item) for item in shown]
        context = {"page": _PAGES[int(draw[2] * 2)], "battery": round(100 * draw[3])}
        device = _DEVICES[int(draw[4] * 3)]
        context |= {"device": device} if device else {}
        yield Impression(time_ms=time_ms, items=served, context=context, **about)
        for i, item in enumerate(shown):
            done = {"time_ms": time_ms + 10 * i, "item_id": item} | about
            if draw[5 + i] < 0.6:
                yield Engagement(kind="click", **done)
            if draw[8 + i] < 0.4:
                value = {} if draw[11] < 0.2 else {"value": float(round(100 * draw[8 + i], 2))}
                yield Engagement(kind="buy", **(done | {"time_ms": time_ms + 10 * i + 3}), **value)
            if draw[12 + i] < 0.4:
                yield Engagement(kind="look", **(done | {"time_ms": time_ms + 10 * i + 5}))


def profile(n: int) -> dict[str, Any]:
    return {"region": f"n{n % 3}"} | ({"age": 20 + n, "hobby": f"h{n % 2}"} if n % 4 else {})


class _Server(FeatureReplay):
    def __init__(self, *args: Any, missed: Callable[[Event], Event | None]) -> None:
        super().__init__(*args)
        self._missed = missed

    def play(self, event: Event) -> list[Event]:
        folded = self._missed(event)
        written = super().play(folded) if folded is not None else []
        return written if folded is event else [replace(event, event_id="planted")]


def past(requests: int = 60, missed: Callable[[Event], Event | None] = lambda event: event) -> ToyPast:
    """The stream as a server with these features would have written it, which folds what ``missed`` makes of
    an event; none: nothing."""
    out, server = ToyPast(FEATURES), _Server(FEATURES, missed=missed)
    for event in events(requests):
        for written in server.play(event):
            if isinstance(written, Item):
                out.items.append(written)
            else:
                out.add(written)
    return out
