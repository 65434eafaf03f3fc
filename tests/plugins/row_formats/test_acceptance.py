"""A smaller form of the rows is accepted by what is known of its cost, and only for what was measured."""

from dataclasses import replace

import pytest

from plugins.row_formats.acceptance import Refuse, decide
from recsys.config.system_config import ModelConfig
from recsys.features.feature_set import FeatureSet
from recsys.features.feature_set_file import FEED_SCHEMA
from runtime.supervision.acceptance_file import Accept, mismatch
from tests.support.training.acceptance_cases import EVIDENCE, FEATURES


def test_it_accepts_what_costs_little_for_sure() -> None:
    assert decide("int8", EVIDENCE, 0.001) == Accept("int8", 0.001, EVIDENCE)
    gains = replace(EVIDENCE, cost=-0.002, low=-0.003, high=-0.001)
    assert isinstance(decide("int8", gains, 0.0), Accept)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"high": 0.0011}, "as high as 0.00110"),  # though its middle is far below
        ({"cost": float("nan"), "low": float("nan"), "high": float("nan")}, "longer log"),
        ({"bytes_a_row": {"float32": 40.0, "int8": 40.0}}, "gains nothing"),
    ],
)
def test_it_refuses_with_the_reason_and_the_evidence(changes: dict[str, object], said: str) -> None:
    found = decide("int8", replace(EVIDENCE, **changes), 0.001)  # type: ignore[arg-type]
    assert isinstance(found, Refuse) and said in found.why
    assert found.evidence.rows == 1000


def test_evidence_is_of_one_feature_set_and_one_model() -> None:
    accepted = Accept("int8", 0.001, EVIDENCE)
    assert mismatch(accepted, FEATURES, ModelConfig()) is None
    past = FeatureSet(replace(FEED_SCHEMA, shown_by="impression"), "all", 20)
    assert mismatch(accepted, past, ModelConfig()) is None
    longer = mismatch(accepted, FeatureSet(FEED_SCHEMA, "all", 21), ModelConfig())
    assert longer is not None and "feature set" in longer
    wider = mismatch(accepted, FEATURES, ModelConfig(dim=8))
    assert wider is not None and "model's configuration" in wider
