"""Tables of a simulated shop whose newest visits are of this hour: visits and products, no impressions."""

from collections.abc import Mapping
from typing import Any, Final

from examples.app_run import Rows
from examples.hashed_draws import draws
from examples.shop.shop_world import ShopWorld
from recsys.events.event_types import Engagement, Item

HOUR_MS: Final = 3_600_000
FILES: Final[Mapping[str, Any]] = {
    "interactions": {
        "files": ["visits.csv"], "user": "user_id", "item": "item_id", "time": "time_ms", "unit": "ms",
        "kind": "kind",
    },
    "items": {
        "files": ["products.csv"], "id": "item_id", "time": "time_ms", "unit": "ms",
        "fields": {name: name for name in ("category", "title", "price")},
    },
}  # fmt: skip
_LOOKS: Final = ("Plain", "Striped", "Folding", "Large", "Small", "Blue", "Green", "Oak")
_THINGS: Final = (
    "lamp", "kettle", "chair", "rug", "shelf", "bowl", "clock", "plate", "vase", "desk", "mug", "towel",
    "pillow", "mirror", "stool", "basket", "tray", "pan", "blanket", "hook", "frame", "bottle", "knife",
    "box",
)  # fmt: skip


def tables(world: ShopWorld) -> dict[str, Rows]:
    """Rows by file."""
    events = world.events()
    visits = [
        {"user_id": e.user_id, "item_id": e.item_id, "time_ms": e.time_ms, "kind": e.kind}
        for e in events
        if isinstance(e, Engagement)
    ]
    products = [
        {"item_id": e.item_id, "time_ms": e.time_ms, **_product(e)} for e in events if isinstance(e, Item)
    ]
    return {"visits.csv": visits, "products.csv": products}


def _product(item: Item) -> dict[str, Any]:
    """Category, title and price of a product; offers are cheaper."""
    look, price = draws(0, 2, "product", item.item_id)
    product = _THINGS[int(item.fields["category"].removeprefix("c")) % len(_THINGS)]
    is_offer = str(item.item_id).startswith("offer")
    title = f"{_LOOKS[int(look * len(_LOOKS))]} {product}{', today only' if is_offer else ''}"
    return {
        "category": product,
        "title": title,
        "price": round((5 + 80 * price) * (0.6 if is_offer else 1), 2),
    }
