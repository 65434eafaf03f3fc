import pytest

from recsys.events.field_schema import (
    CATEGORICAL,
    NUMERIC,
    VECTOR,
    Schema,
    check_fields,
    default_groups,
    kind_of,
    likely_misspelt,
    spellings_of,
    values_of,
)
from recsys.events.rejection import Rejected


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("a", CATEGORICAL), (True, CATEGORICAL), (["a", "b"], CATEGORICAL), (["a", 1], CATEGORICAL),
        (1, NUMERIC), (1.5, NUMERIC), ([1, 2.0], VECTOR), (None, None), ({}, None), ([], None),
    ],
)  # fmt: skip
def test_the_kind_of_a_field_is_that_of_its_value(value: object, kind: str | None) -> None:
    assert kind_of(value) == kind


def test_a_categorical_value_is_a_list_of_texts_without_what_is_absent() -> None:
    assert values_of(7) == ["7"] and values_of(True) == ["True"]
    assert values_of(["a", 7, None, ""]) == ["a", "7"]
    assert values_of(None) == values_of("") == values_of([]) == []
    assert spellings_of("true") == ("true", *values_of(True))
    assert spellings_of("False") == ("False",) and spellings_of("truest") == ("truest",)


def test_items_are_grouped_by_author_and_tags_else_by_the_first_fields() -> None:
    assert default_groups(("author", "brand", "tags", "topic")) == ("author", "tags")
    assert default_groups(("brand", "category")) == ("category",)
    assert default_groups(("brand", "colour", "shop")) == ("brand", "colour")
    assert default_groups(()) == ()


def test_names_are_found_by_part_and_kind() -> None:
    schema = Schema(item=(("a", CATEGORICAL), ("b", NUMERIC)), user=(("c", CATEGORICAL),))
    assert schema.names("item", NUMERIC) == ("b",)
    assert schema.names("user", CATEGORICAL) == ("c",) and schema.names("context", NUMERIC) == ()


def test_a_schema_says_what_is_wrong_with_it() -> None:
    with pytest.raises(ValueError, match=r"labels is empty.*\[click\]"):
        Schema(labels=())
    with pytest.raises(ValueError, match="shown_by is 'glance', expected view, impression or click"):
        Schema(shown_by="glance")


SHOP = Schema(item=(("brand", CATEGORICAL), ("look", VECTOR), ("price", NUMERIC)), vectors=(("look", 2),))


@pytest.mark.parametrize(
    "fields",
    [
        {}, {"brand": "a", "price": 3, "look": [1, 2.5]}, {"brand": ["a", 7, None, True]},
        {"brand": 7, "price": None, "look": ""}, {"brand": "", "price": ""}, {"other": {"a": [1]}},
    ],
)  # fmt: skip
def test_fields_may_have_values_of_their_kinds_or_none(fields: dict[str, object]) -> None:
    check_fields(SHOP, "item", fields, "fields")
    check_fields(SHOP, "user", {"price": "high"}, "fields")  # of items alone


def test_a_name_that_resembles_a_missing_declared_one_is_likely_misspelt() -> None:
    declared = ("brand", "price", "topics")
    assert likely_misspelt(declared, ("title", "topcis")) == ("topcis", "topics")
    assert likely_misspelt(declared, ("title", "topics", "topic")) is None  # topics has its value
    assert likely_misspelt(declared, ("title", "image_url")) is None


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"price": "3"}, "a number"), ({"price": [3]}, "a number"), ({"brand": {"a": 1}}, "a text"),
        ({"brand": ["a", ["b"]]}, "a text"), ({"look": [1]}, "a list of 2 numbers"),
        ({"look": 1}, "a list of 2 numbers"), ({"look": [1, "2"]}, "a list of 2 numbers"),
    ],
)  # fmt: skip
def test_a_value_of_another_kind_is_refused(fields: dict[str, object], expected: str) -> None:
    with pytest.raises(Rejected) as refused:
        check_fields(SHOP, "item", fields, "fields")
    assert refused.value.field == f"fields.{next(iter(fields))}"
    assert refused.value.expected.startswith(expected)
