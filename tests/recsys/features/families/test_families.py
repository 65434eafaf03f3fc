"""What holds for every family: its own keys, its own part of what is declared, its own columns."""

from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from recsys.app.app_file import app_of
from recsys.features.catalogue import Catalogue
from recsys.features.families.base import Family, RequestView
from recsys.features.families.declared import FAMILIES, Declared
from recsys.features.feature_builder import FeatureBuilder
from recsys.features.feature_set import FeatureSet
from recsys.features.item_counters import ItemCounters
from recsys.features.session import Session
from tests.support.operator_app import DEFINITION, START_MS

ALL = app_of(DEFINITION.replace("near: true", "near: true\n  trend: true\n  visit: 30m")).feature_set()


def test_names_and_keys_are_a_family_s_own() -> None:
    keys = [key for family in FAMILIES for key in family.keys]
    assert len(set(keys)) == len(keys)
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)


def test_columns_follow_each_other_in_the_order_of_the_families() -> None:
    families = list(dict.fromkeys(column.family for column in ALL.dense))
    assert families == [family.name for family in FAMILIES if family.name in families]
    for family in families:
        assert {column.family for column in ALL.dense[ALL.span(family)]} == {family}
    assert sum(ALL.span(family).stop - ALL.span(family).start for family in families) == len(ALL.dense)


def test_what_is_not_declared_is_not_stored() -> None:
    older = {"history_of", "half_lives_h", "entities", "item_age", "age_field", "near", "position"}
    assert Declared().as_dict().keys() == older | {"list_context"}
    assert len(fields(Declared)) > len(older)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_family_writes_its_own_columns_alone(family: type[Family], monkeypatch: pytest.MonkeyPatch) -> None:
    features = FeatureSet(ALL.schema, "all", 5, ALL.declared)
    before: list[Any] = []
    write = family.write

    def checked(self: Family, request: RequestView, dense_NF: Any) -> None:
        others = np.delete(dense_NF, np.s_[self.at], 1)
        write(self, request, dense_NF)
        assert np.array_equal(np.delete(dense_NF, np.s_[self.at], 1), others)
        before.append(self.at)

    monkeypatch.setattr(family, "write", checked)
    catalogue = Catalogue(features)
    candidates = np.array([catalogue.ensure(f"v{n}") for n in range(3)], np.int64)
    builder, counters = FeatureBuilder(features), ItemCounters(features).counters
    builder.build(Session("u", features), "feed", {}, candidates, catalogue, counters, START_MS)
    assert before == [features.span(family.name)] * (family.name in {c.family for c in features.dense})
