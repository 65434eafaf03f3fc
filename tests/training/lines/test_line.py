"""What a line is, from the configuration: which tables are refused, and what its digest names."""

from pathlib import Path

import pytest

from recsys.config.system_config import Config, laptop, override
from recsys.features.feature_set import FeatureSet
from recsys.features.feature_set_file import FEED_SCHEMA
from runtime.cli import up
from training.lines.line import learning_digest, spec_of, whole_spec

ELEVEN = {"parameter_server.shards": 11, "model.tables.items.admit_after": 2}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (ELEVEN, r"model.tables.items with parameter_server.shards 11: .*divisor of 15120"),
        ({"model.tables.users.budget_mb": 1e-6}, r"model.tables.users .*: budget_mb is 1e-06"),
    ],
)
def test_tables_that_no_shard_could_hold_are_refused(
    changes: dict[str, object], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    free = {"serve.port": 0, "serve.dashboard_port": 0}  # whoever has the usual ones
    config = override(laptop(), changes | free | {"state": str(tmp_path)})
    with pytest.raises(ValueError, match=said):
        spec_of(config)
    started: list[Config] = []
    monkeypatch.setattr(up, "_run", lambda config, plan, console: started.append(config))
    assert up.start(config) == 2 and not started
    assert "model.tables." in capsys.readouterr().err


def test_ten_shards_may_count_sightings() -> None:
    assert spec_of(override(laptop(), ELEVEN | {"parameter_server.shards": 10})).parts == 10


def test_the_number_of_shards_is_in_the_digest_where_a_table_has_a_budget() -> None:
    shards = {"parameter_server.shards": 3, "trainer.workers": 3}
    budget = {"model.tables.users.budget_mb": 1.0}
    features = FeatureSet(FEED_SCHEMA)
    digests = [
        learning_digest(override(laptop(), changes), features)
        for changes in ({}, shards, budget, budget | shards)
    ]
    assert digests[0] == digests[1] and len(set(digests)) == 3


def test_a_spec_has_the_sizes_of_the_configuration() -> None:
    config = override(
        laptop(),
        {"parameter_server.delta_kb": 3.5, "step.snapshot_every": 70, "step.lanes": 3, "step.snapshot_s": 9},
    )
    spec = spec_of(config, "other", 4)
    assert (spec.delta_bytes, spec.settle_every, spec.settle_s, spec.lanes) == (3_584, 70, 9, 3)
    assert (spec.line, spec.epoch, spec.parts) == ("other", 4, config.parameter_server.shards)
    assert whole_spec(config).parts == 1


def test_a_line_in_one_shard_has_room_for_the_rows_of_all_live_shards() -> None:
    changes = {"parameter_server.shards": 3, "model.tables.users.budget_mb": 1.5}
    config = override(laptop(), changes)
    budgets = [{t.name: t.budget_mb for t in of(config).tables} for of in (spec_of, whole_spec)]
    assert budgets[0]["users"] == 1.5 and budgets[1]["users"] == 4.5
    assert budgets[0]["items"] == budgets[1]["items"] == 0
