"""A running system takes up changed features; all else is refused with line and remedy."""

from pathlib import Path

import pytest

from recsys.app.app_file import app_of, text_of
from recsys.app.change import read_change
from recsys.app.definition import App
from recsys.model.wider_set import covers

TEXT = """app: shop
events:
  click: positive
  buy: {label: positive, weight: 5}
fields:
  item: {brand: category, price: number}
  user: {country: category}
groups: [brand]
shown: list
window: 2m
history: {of: [click], length: 10}
features:
  half_lives: [1h, 24h]
  rates: [all, item, brand]
"""
BEFORE = app_of(TEXT)


def change(tmp_path: Path, old: str, new: str) -> App:
    assert old in TEXT
    file = tmp_path / "app.yaml"
    file.write_text(TEXT.replace(old, new), "utf-8")
    app, logged = read_change(text_of(file), file, BEFORE, BEFORE.feature_set())
    assert covers(logged, BEFORE.feature_set()) and covers(logged, app.feature_set())
    return app


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("rates: [all, item, brand]", "rates: [all, item, brand, user×brand]"),
        ("rates: [all, item, brand]", "rates: [all, item]"),
        ("half_lives: [1h, 24h]", "half_lives: [2h, 24h]"),
        ("half_lives: [1h, 24h]", "half_lives: [1h, 7d]"),
        ("price: number", "price: number, weight: number, since: time"),
        (", price: number", ""),
        ("user: {country: category}", "user: {country: category, age: number}"),
        ("length: 10", "length: 50"),
        ("length: 10", "length: 5"),
        ("item, brand]\n", "item, brand]\n  age: true\n  near: true\n  position: true\n  list: [item]\n"),
    ],
)
def test_features_may_change(tmp_path: Path, old: str, new: str) -> None:
    assert change(tmp_path, old, new) == app_of(TEXT.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("app: shop", "app: toys", 1, "app is 'toys', expected 'shop'.*new state folder"),
        (
            "  click: positive\n",
            "  click: negative\n",
            3,
            "events.click.label is 'negative', .*new state folder",
        ),
        ("weight: 5", "weight: 6", 4, "events.buy.weight is 6.0, expected 5.0.*recsys down"),
        ("  buy: {label: positive, weight: 5}\n", "", 2, r"events is \('click',\), expected"),
        ("price: number", "price: category", 6, "fields.item.price is 'category', expected 'number'"),
        (
            "price: number",
            "price: number, hue: category",
            6,
            "item.hue is 'category', expected 'not declared'",
        ),
        ("price: number", "price: number, at: {vector: 3}", 6, "item.at is 'vector of 3', expected 'not"),
        ("user: {country: category}", "user: {}", 7, "user.country is 'not declared', expected"),
        ("shown: list", "shown: view", 9, "shown is 'view', expected 'list'"),
        ("groups: [brand]", "groups: []", 8, ""),
        ("window: 2m", "window: 3m", 10, "window is 180.0, expected 120.0: .*recsys down"),
        ("shown: list", "repeats: true\nshown: list", 9, "repeats is True, .*recsys down"),
        ("of: [click]", "of: [buy]", 11, r"history.of is \('buy',\), expected \('click',\)"),
        ("[1h, 24h]", "[2h, 3h, 4h, 5h, 6h]", 12, "at most 6: change fewer at a time"),
        ("item, brand", "item, hue", 14, "entity 'hue'"),
    ],
)
def test_other_changes_are_refused_with_line_and_remedy(
    tmp_path: Path, old: str, new: str, line: int, message: str
) -> None:
    if not message:  # the default group is the same
        change(tmp_path, old, new)
        return
    with pytest.raises(ValueError, match=message) as raised:
        change(tmp_path, old, new)
    assert f"app.yaml:{line}: " in str(raised.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="none.yaml: expected a readable definition"):
        text_of(tmp_path / "none.yaml")
