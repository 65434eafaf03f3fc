"""The bench of the audit runs any definition, and counts what it compared."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.answers.bench_audit import measure_audit
from benchmarks.answers.bench_features import _OPERATORS, _RATES
from recsys.features.feature_builder import FeatureBuilder

pytestmark = pytest.mark.slow


@pytest.fixture
def definition(tmp_path: Path) -> Path:
    file = tmp_path / "app.yaml"
    file.write_text("app: operators\n" + _RATES.format(shown="list") + _OPERATORS)
    return file


def test_an_app_with_every_operator_has_no_skew(definition: Path) -> None:
    figures = measure_audit([definition], 25_000, 0)["operators"]
    assert figures["numbers"] >= 20_000 and figures["lists"] > 10
    assert (figures["differing"], figures["not_recomputed"]) == (0, {})
    assert figures["without_counters"] == {}


def test_numbers_that_the_server_computed_otherwise_differ(
    definition: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One request of the server has a wrong column in all candidates, ten of which are shown."""
    build, wrong = FeatureBuilder.build, list[object]()

    def drifting(self: FeatureBuilder, *args: object, **named: object) -> object:
        built = build(self, *args, **named)  # type: ignore[arg-type]
        if not wrong and len(built.dense_NF) >= 10:
            built.dense_NF[:, 0] += np.float32(0.5)
            wrong.append(built)
        return built

    monkeypatch.setattr(FeatureBuilder, "build", drifting)
    figures = measure_audit([definition], 20_000, 0)["operators"]
    assert figures["differing"] == 10 and len(figures["columns_that_differ"]) == 1
