"""Guessed definitions of the shapes that tables of interactions usually have; each can be read back."""

import time
from pathlib import Path
from typing import Any

import pytest

from recsys.app.app_file import app_of
from recsys.app.data_files import DataFiles, Entities, Interactions, read_data_files
from recsys.app.definition import App
from recsys.app.guess import guess

Columns = dict[str, list[Any]]
DAY_S = 86_400


def read(tmp_path: Path, samples: dict[str, Columns], **given: str) -> tuple[App, DataFiles]:
    file = tmp_path / "app.yaml"
    file.write_text(guess("mine", samples, given).text)
    return app_of(file.read_text()), read_data_files(file)


def ratings(scale: int = 5) -> Columns:
    n = 100
    return {
        "userId": [str(i % 7) for i in range(n)],
        "movieId": [str(i) for i in range(n)],
        "rating": [str(1 + i % scale) for i in range(n)],
        "timestamp": [str(880_000_000 + i * DAY_S) for i in range(n)],
    }


def test_ratings_become_likes_from_four_fifths_of_the_scale_on(tmp_path: Path) -> None:
    app, files = read(tmp_path, {"ratings.csv": ratings()})
    table = files.interactions
    assert (table.user, table.item, table.time, table.unit) == ("userId", "movieId", "timestamp", "s")
    assert (table.rating, table.at_least) == ("rating", 4.0)
    assert app.labels == ("like",) and app.events["rate"].label == ""
    assert app.shown == "clicks" and not app.repeats
    assert app.features.trend and app.features.visit_s == 1800.0 and not app.features.last
    assert app.features.half_lives_h == (47.0, 2328.0)  # of 97 days
    _, ten = read(tmp_path, {"ratings.csv": ratings(10)})
    assert ten.interactions.at_least == 8.0


@pytest.mark.parametrize(
    ("times", "unit"),
    [([1_700_000_000_000], "ms"), ([1_700_000_000_000_000], "us"), (["2024-05-01T10:00:00Z"], "iso"),
     (["2024-05-01"], "iso"), (["2024-05-01 10:00:00.5 UTC"], "iso"), (["2024/05/01 10:00"], "iso"),
     ([1_700_000_000.5], "s")],
)  # fmt: skip
def test_units_of_times(tmp_path: Path, times: list[Any], unit: str) -> None:
    columns = {"user": ["a"], "item": ["b"], "when_date": times}
    _, files = read(tmp_path, {"log.parquet": columns})
    assert (files.interactions.time, files.interactions.unit) == ("when_date", unit)


def test_kinds_of_event_have_labels_and_weights(tmp_path: Path) -> None:
    kinds = ["view"] * 8 + ["add to cart", "purchase", "Hide"]
    n = len(kinds)
    columns = {"visitorid": ["1"] * n, "itemid": list("abcdefghijk"), "event": kinds}
    app, files = read(tmp_path, {"events.csv": columns})
    assert app.labels == ("view", "add_to_cart", "purchase", "hide")
    assert [app.events[kind].weight for kind in app.labels] == [1, 3, 5, 1]
    assert app.events["hide"].label == "negative"
    assert files.interactions.names == {"add to cart": "add_to_cart", "Hide": "hide"}
    assert files.interactions.time == ""


def test_columns_of_flags_are_labels_of_shown_items(tmp_path: Path) -> None:
    columns: Columns = {
        "user_id": [1, 1, 2, 2], "video_id": [1, 2, 3, 4], "time_ms": [1_700_000_000_000] * 4,
        "is_click": [0, 1, 0, 1], "like": [0, 0, 0, 1], "is_hate": [1, 0, 0, 0],
        "request_id": ["a", "a", "b", "b"],
    }  # fmt: skip
    app, files = read(tmp_path, {"log.jsonl": columns})
    assert app.shown == "list" and app.labels == ("click", "like", "hate")
    assert app.events["hate"].label == "negative"
    assert files.interactions.labels == {"is_click": "click", "like": "like", "is_hate": "hate"}
    assert files.interactions.request == "request_id"


def test_rows_of_an_impression_kind_are_shown_items(tmp_path: Path) -> None:
    columns = {"user": ["u"] * 3, "item": list("abc"), "action": ["impression", "impression", "click"]}
    app, files = read(tmp_path, {"log.csv": columns})
    assert app.shown == "list" and files.interactions.shown == ["impression"]
    assert app.labels == ("click",)


@pytest.mark.parametrize("own_row", [True, False])
def test_a_row_may_be_either_a_shown_item_or_a_click(tmp_path: Path, own_row: bool) -> None:
    rows = [(f"u{n}", f"i{n % 7 + k}", "show") for n in range(30) for k in range(own_row, 4)]
    rows += [(f"u{n}", f"i{n % 7 + own_row}", "click") for n in range(30) if own_row or n % 20]
    if not own_row:
        rows = [row for row in rows if (*row[:2], "click") not in rows or row[2] == "click"]
    users, items, kinds = zip(*rows, strict=True)
    columns = {"user": list(users), "item": list(items), "action": list(kinds)}
    app, files = read(tmp_path, {"log.csv": columns}, shown_kind="show")
    assert app.shown == "list" and app.labels == ("click",)
    assert files.interactions.shown == (["show"] if own_row else ["show", "click"])


def test_items_and_users_have_fields_by_their_values(tmp_path: Path) -> None:
    n = 60
    items: Columns = {
        "item_id": list(range(n)),
        "title": [f"A title {i}" for i in range(n)],
        "genres": ["a|b" if i % 2 else "c" for i in range(n)],
        "brand": ["x", "y", "z"] * 20,
        "price": [str(i * 1.5) for i in range(n)],
        "published_at": ["2024-05-01"] * n,
        "photo": [[0.1, 0.2, 0.3]] * n,
    }
    users: Columns = {"user_id": list("abcde"), "age": [20, 30, 40, 50, 60], "country": ["DE"] * 5}
    log: Columns = {"user_id": ["a"], "item_id": [1]}
    app, files = read(tmp_path, {"i.parquet": items, "u.csv": users, "log.csv": log})
    kinds = {name: field.kind for name, field in app.fields["item"].items()}
    assert kinds == {"genres": "list", "brand": "category", "price": "number",
                     "published_at": "time", "photo": "vector"}  # fmt: skip
    assert app.fields["item"]["photo"].length == 3 and app.features.age_field == "published_at"
    assert set(app.fields["user"]) == {"age", "country"} and app.features.numbers == ("user.age",)
    assert files.items is not None and files.items.fields["title"] == "title"
    assert files.users is not None and set(files.users.fields) == {"age", "country"}
    assert app.groups == ("genres", "brand") and "user×brand" in app.features.entities


def test_a_guess_takes_time_in_proportion_to_the_rows() -> None:
    n = 20_000
    columns: Columns = {"user": list(range(n)), "item": ["x"] * n, "time": list(range(10**9, 10**9 + n))}
    began = time.process_time()
    guess("mine", {"log.csv": columns}, {})
    assert time.process_time() - began < 2.0


def test_viewers_who_come_back_to_items_are_noticed(tmp_path: Path) -> None:
    columns = {"user": list("aabb"), "item": list("xxyy")}
    app, _ = read(tmp_path, {"log.csv": columns})
    assert app.repeats and app.features.last == (("click", "user×item"),)


@pytest.mark.parametrize(
    ("user", "item"), [("household_id", "product_id"), ("CustomerID", "StockCode"), ("personId", "contentId"),
                       ("user_id", "venue_id"), ("shopper", "sku"), ("client_id", "film_id")]
)  # fmt: skip
def test_names_of_users_and_items_are_known(user: str, item: str, tmp_path: Path) -> None:
    _, files = read(tmp_path, {"log.csv": {user: ["a", "b"], item: ["x", "y"]}})
    assert (files.interactions.user, files.interactions.item) == (user, item)


@pytest.mark.parametrize("good", ["2026-01-31 12:00", "1700000000"])
def test_a_column_of_times_with_others_among_few_rows_is_named(good: str, tmp_path: Path) -> None:
    """Without its times, rows would count in the order of the file."""
    log = {"user": list("abc"), "item": list("xyz"), "when": [good, "soon", good]}
    with pytest.raises(ValueError, match="'when' has ''"):
        read(tmp_path, {"log.csv": log | {"when": [good, good, ""]}})
    with pytest.raises(ValueError, match=r"'when' has 'soon', and in all 1 of 3 .* --time"):
        read(tmp_path, {"log.csv": log})
    _, files = read(tmp_path, {"log.csv": log | {"when": ["soon", "later", good]}})
    assert not files.interactions.time


def test_columns_without_telling_names_can_be_named(tmp_path: Path) -> None:
    columns = {"a": ["1", "2"], "b": ["3", "4"], "c": ["1700000000", "1700000001"]}
    with pytest.raises(ValueError, match=r"no file has .* users .*a, b, c.* --user and --item"):
        guess("mine", {"log.csv": columns}, {})
    _, files = read(tmp_path, {"log.csv": columns}, user="a", item="b", time="c")
    assert (files.interactions.user, files.interactions.item) == ("a", "b")
    assert (files.interactions.time, files.interactions.unit) == ("c", "s")


def test_a_file_belongs_to_the_table_with_its_keys_and_most_of_its_columns() -> None:
    files = DataFiles(
        interactions=Interactions(user="user", item="id", time="at"),
        items=Entities(id="id", fields={"title": "title"}),
        users=Entities(id="id", fields={"country": "country", "age": "age"}),
    )
    assert files.kind_of(["id", "title"]) == "items"
    assert files.kind_of(["id", "age"]) == "users"
    assert files.kind_of(["at", "id", "title", "user"]) == "interactions"
    assert files.kind_of(["title", "at"]) == ""


def test_a_wrong_section_names_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / "app.yaml"
    file.write_text("events: {click: positive}\nfiles:\n  interactions:\n    user: u\n    itm: i\n")
    with pytest.raises(ValueError, match=r"app\.yaml:3: files: .*itm.* the keys here are .*item, .*request"):
        read_data_files(file)
    file.write_text("events: {click: positive}\n")
    with pytest.raises(ValueError, match=r"app\.yaml:1: .*recsys init FILES"):
        read_data_files(file)


@pytest.mark.parametrize("value", [10**400, "nan", "inf"])
def test_a_number_that_no_float_holds_is_left_out_of_the_guess(tmp_path: Path, value: Any) -> None:
    table = ratings()
    table["rating"][0] = value
    table["timestamp"][0] = value
    _, files = read(tmp_path, {"ratings.csv": table})
    assert (files.interactions.at_least, files.interactions.unit) == (4.0, "s")


def test_names_that_mean_something_else_are_changed(tmp_path: Path) -> None:
    visits = {"user": ["a", "b"] * 20, "item": ["1", "2"] * 20, "event": ["watch", "购买"] * 20}
    visits["event"][0] = "浏览"
    items = {"item": ["1", "2"] * 20, "context": ["a", "b"] * 20}
    app, files = read(tmp_path, {"visits.csv": visits, "items.csv": items})
    assert set(app.events) == {"x_", "watch_2", "x__3"}
    assert files.interactions.names == {"购买": "x_", "watch": "watch_2", "浏览": "x__3"}
    assert list(app.fields["item"]) == ["context_1"]


def test_a_list_in_some_rows_only_is_a_list(tmp_path: Path) -> None:
    items = {"item": ["1", "2", "3"], "tags": [["a"], 3, ["b", "c"]]}
    app, _ = read(tmp_path, {"ratings.csv": ratings(), "items.jsonl": items})
    assert app.fields["item"]["tags"].kind == "list"


def test_words_of_other_fields_are_known(tmp_path: Path) -> None:
    plays: Columns = {"listener": ["a"], "episode": ["x"], "at": ["2026-01-01T10:00:00+01:00"]}
    _, files = read(tmp_path, {"plays.jsonl": plays})
    assert (files.interactions.user, files.interactions.item) == ("listener", "episode")
    assert (files.interactions.time, files.interactions.unit) == ("at", "iso")
    searches: Columns = {
        "search_id": [1, 1], "traveller": [1, 2], "hotel": [1, 2],
        "clicked": [True, False], "booked": [False, True],
    }  # fmt: skip
    app, files = read(tmp_path, {"searches.parquet": searches})
    assert files.interactions.request == "search_id" and app.events["booked"].weight == 5


def test_views_of_logged_lists_close_their_examples(tmp_path: Path) -> None:
    kinds = ["impression", "impression", "view", "click"]
    columns = {"user": ["u"] * 4, "item": list("abaa"), "event": kinds, "request_id": ["r"] * 4}
    app, files = read(tmp_path, {"log.csv": columns})
    assert (app.shown, app.labels, files.interactions.request) == ("view", ("click",), "request_id")
    del columns["event"]
    app, files = read(tmp_path, {"log.csv": columns | {"event": ["view"] * 3 + ["click"]}})
    assert app.shown == "clicks" and app.labels == ("view", "click")


def test_long_and_equal_names_of_columns_give_names_of_a_definition(tmp_path: Path) -> None:
    long = "a_column_with_a_name_" * 6
    items: Columns = {"item": ["1", "2"] * 20, "Price": [1, 2] * 20, "price": [3, 4] * 20}
    log: Columns = {"user": ["a", "b"] * 20, "item": ["1", "2"] * 20, long: [0, 1] * 20}
    app, files = read(tmp_path, {"log.csv": log, "items.csv": items | {long: ["x", "y"] * 20}})
    assert files.items is not None
    assert list(files.items.fields.values()) == ["Price", "price", long]
    assert set(app.fields["item"]) == {"price", "price_2", long[:56]}
    assert files.interactions.labels == {long: long[:56]}


def test_kinds_of_event_with_an_item_are_no_return_to_it(tmp_path: Path) -> None:
    columns = {"user": list("aabb"), "item": list("xxyy"), "event": ["view", "like"] * 2}
    assert not read(tmp_path, {"log.csv": columns})[0].repeats


def test_a_visit_is_the_user_only_where_most_rows_have_no_other(tmp_path: Path) -> None:
    log = {"session_id": list("abcd"), "item_id": list("wxyz"), "customer_id": list("1122")}
    assert read(tmp_path, {"log.csv": log})[1].interactions.user == "customer_id"
    anonymous = log | {"customer_id": ["NA", "NA", "NA", "1"]}
    assert read(tmp_path, {"log.csv": anonymous})[1].interactions.user == "session_id"
    named = read(tmp_path, {"log.csv": anonymous}, user="customer_id")[1]
    assert named.interactions.user == "customer_id"


def test_times_that_cannot_be_read_are_named_before_anything_is_written() -> None:
    columns = {"user": ["a"], "item": ["b"], "Datum": ["16/10/2026 07:09"]}
    with pytest.raises(ValueError, match=r"'Datum' has '16/10/2026 07:09', expected times"):
        guess("mine", {"log.csv": columns}, {"time": "Datum"})


def test_columns_and_files_without_a_use_are_shown() -> None:
    log: Columns = {"user": ["a"], "item": ["b"], "city": ["Rome"]}
    out = guess("mine", {"log.csv": log, "cities.csv": {"city": ["Rome"], "country": ["IT"]}}, {})
    assert ("log.csv", "city", "not read") in out.rows
    assert [column for file, column, _ in out.rows if file == "cities.csv"] == [""]


def test_a_number_with_a_point_before_three_digits_shows_how_it_is_read() -> None:
    items = {"itemId": ["a", "b"], "pay": ["52.000", "980"], "kg": ["1.25", "0.5"]}
    rows = guess("mine", {"ratings.csv": ratings(), "items.csv": items}, {}).rows
    assert ("items.csv", "pay", "number; 52.000 is 52") in rows
    assert ("items.csv", "kg", "number") in rows
    commas: Columns = ratings() | {"rating": ["4,5"] * 100}
    rows = guess("mine", {"ratings.csv": commas}, {}).rows
    assert ("ratings.csv", "rating", "not read; for numbers, write 4,5 with a point") in rows


def test_a_second_table_has_the_columns_of_the_first(tmp_path: Path) -> None:
    log: Columns = {"user": ["a"], "item": ["b"], "rating": [5]}
    _, files = read(tmp_path, {"may.csv": log, "june.csv": log})
    assert files.interactions.files == ["may.csv", "june.csv"]
    del log["rating"]
    with pytest.raises(ValueError, match=r"june.csv lacks column 'rating' of may.csv"):
        guess("mine", {"may.csv": log | {"rating": [5]}, "june.csv": log}, {})
    with pytest.raises(ValueError, match="name them with --user and --item"):
        guess("mine", {"a.csv": {"item": ["b"], "who": ["a"]}, "b.csv": {"item": ["b"]}}, {})


def test_a_file_that_a_table_names_belongs_to_it() -> None:
    files = DataFiles(
        interactions=Interactions(user="user", item="id", files=["log.csv"]),
        items=Entities(id="id", fields={"price": "price", "size": "size"}, files=["items.csv"]),
    )
    columns = ["user", "id", "price", "size"]
    assert files.kind_of(columns, "log.csv") == "interactions"
    assert files.kind_of(columns, "items.csv") == files.kind_of(columns) == "items"


def test_times_of_items_may_be_missing(tmp_path: Path) -> None:
    items: Columns = {"item": list("abcd"), "published_at": ["2024-05-01", None, "", "2024-05-02"]}
    app, files = read(tmp_path, {"ratings.csv": ratings(), "items.jsonl": items})
    assert app.fields["item"]["published_at"].kind == "time"
    assert files.items is not None and files.items.unit == "iso"


def test_columns_and_values_of_other_languages_can_be_named(tmp_path: Path) -> None:
    columns = {
        "Bewerber": ["1", "2"] * 20, "Stelle": list(map(str, range(40))), "Liste": ["l", "m"] * 20,
        "Zeit": ["02.11.2026 20:23:23"] * 40, "Ereignis": ["angezeigt", "geklickt"] * 20,
    }  # fmt: skip
    named = {"user": "Bewerber", "item": "Stelle", "time": "Zeit"}
    guessed = guess("mine", {"log.csv": columns}, named)
    assert "--kind" in str(guessed.rows) and guessed.definition["shown"] == "clicks"
    named |= {"kind": "Ereignis", "request": "Liste"}
    guessed = guess("mine", {"log.csv": columns}, named, "angezeigt")
    table = guessed.definition["files"]["interactions"]
    assert guessed.definition["shown"] == "list"
    assert guessed.definition["events"] == {"geklickt": "positive"}
    assert (table["shown"], table["request"], table.get("unit", "iso")) == (
        ["angezeigt", "geklickt"],
        "Liste",
        "iso",
    )
    with pytest.raises(ValueError, match="'Ereignis' has no 'gezeigt'; it has angezeigt, geklickt"):
        guess("mine", {"log.csv": columns}, named, "gezeigt")


def test_fields_of_real_tables(tmp_path: Path) -> None:
    n = 1_200
    items: Columns = {
        "item": list(range(n)),
        "occupation": [f"occupation {i % 400}" for i in range(n)],
        "title": [f"title {i % 900}" for i in range(n)],
        "salary": ["n/a" if i % 25 == 0 else str(i) for i in range(n)],
        "explicit": [i % 2 == 0 for i in range(n)],
        "since": ["1.11.2026"] * n,
        "trade": [f"trade {i % 3}" for i in range(n)],
        "Gelöscht": [0.5] * n,
    }
    app, _ = read(tmp_path, {"ratings.csv": ratings(), "items.jsonl": items})
    assert {name: field.kind for name, field in app.fields["item"].items()} == {
        "geloscht": "number", "occupation": "category", "salary": "number", "explicit": "category",
        "since": "time", "trade": "category",
    }  # fmt: skip
    assert app.groups == ("trade", "occupation")
    assert {"trade", "user×trade"} <= set(app.features.entities)


def test_kinds_of_event_come_from_all_files_of_interactions(tmp_path: Path) -> None:
    views: Columns = {"user": ["a", "b"], "item": ["1", "2"], "event": ["view", "view"]}
    orders = views | {"event": ["order", "order"]}
    app, files = read(tmp_path, {"views.csv": views, "orders.csv": orders})
    assert app.labels == ("view", "order") and files.names == ["views.csv", "orders.csv"]
    rows = guess("mine", {"views.csv": views, "orders.csv": orders}, {}).rows
    assert ("orders.csv", "", "more rows like those of views.csv") in rows


def test_posts_with_their_writers_are_items(tmp_path: Path) -> None:
    likes: Columns = {"user_id": list("abab"), "post_id": list("1122")}
    posts: Columns = {"post_id": list("123"), "user_id": list("xyx"), "topic": ["t", "u", "t"]}
    for samples in ({"likes.csv": likes, "posts.csv": posts}, {"p.csv": posts, "l.csv": likes}):
        _, files = read(tmp_path, samples)
        assert files.interactions.files == [next(name for name in samples if name[0] == "l")]
        assert files.items is not None and set(files.items.fields) == {"user_id", "topic"}


def test_numbers_that_are_codes_are_categories_and_texts_may_be_lists(tmp_path: Path) -> None:
    items: Columns = {
        "item": list(map(str, range(12))), "category_id": ["1", "2", "3"] * 4, "price": ["5", "6", "7"] * 4,
        "genres": ['["a", "b"]', "['c']"] * 6, "photo": ["[0.1, 0.2]"] * 12, "parent_id": list(range(12)),
        "made": [1_700_000_000] * 12, "changed": ["2024-05-01"] * 12,
    }  # fmt: skip
    app, files = read(tmp_path, {"ratings.csv": ratings(), "items.csv": items})
    assert {name: field.kind for name, field in app.fields["item"].items()} == {
        "category_id": "category", "price": "number", "genres": "list", "photo": "vector", "made": "time"
    }  # fmt: skip
    assert app.groups == ("genres", "category_id")
    assert files.items is not None and files.items.unit == "s"  # of ``changed``: another, so content


def test_what_cannot_be_an_id_or_a_label_is_passed_over(tmp_path: Path) -> None:
    plays: Columns = {
        "user": [{"id": 1}] * 4,
        "user_id": ["1.0", "2.0"] * 2,
        "track": ["1", "1", "2", "2"],
        "skipped": [True, False] * 2,
    }
    app, files = read(tmp_path, {"plays.jsonl": plays})
    assert files.interactions.user == "user_id" and app.labels == ("click",)
    rows = guess("mine", {"plays.jsonl": plays}, {}).rows
    assert ("plays.jsonl", "user_id", "user; 1.0 isn't 1") in rows


def test_names_and_kinds_that_a_definition_has_no_place_for(tmp_path: Path) -> None:
    items: Columns = {
        "item": ["1", "2"], "age": [3, 4], "near": [1, 2], "since": ["2024-05-01"] * 2,
        "long": [[0.1] * 5000] * 2,
    }  # fmt: skip
    users: Columns = {"user": ["a", "b"], "age": [30, 40], "taste": [[0.1, 0.2]] * 2}
    app, _ = read(tmp_path, {"ratings.csv": ratings(), "items.jsonl": items, "users.jsonl": users})
    assert list(app.fields["item"]) == ["age_1", "near_2", "since"]
    assert list(app.fields["user"]) == ["age"]


@pytest.mark.parametrize("kind", ["skip", "impression"])
def test_kinds_of_which_none_is_positive_are_an_error(kind: str) -> None:
    log: Columns = {"user": ["a"], "item": ["b"], "event": [kind]}
    with pytest.raises(ValueError, match=f"'event' has {kind}, expected a kind .*--kind"):
        guess("mine", {"log.csv": log}, {})
