"""Which model an epoch has, by ``control`` alone."""

from dataclasses import replace

import msgspec
import pytest

from experiments.promotion.epoch_model import config_at, size_difference, with_size
from recsys.config.system_config import Config, ModelConfig, RowsConfig, TablesConfig
from recsys.events.control_records import Candidate, Control, Decision, Live, ModelSize
from recsys.events.records import pack, unpack
from tests.support.folded_control import folded

SMALL, OTHER = ModelSize(8, (64, 32)), ModelSize(4, ())
CONFIG = Config()


HISTORY = folded(
    Live(line="main", epoch=0),
    Candidate(line="small", registry="r", size=SMALL),
    Candidate(line="usual", registry="r"),
    Decision(line="small", verdict="promote", to="all", epoch=1),
    Live(line="main", epoch=1, parent_epoch=0, candidate="small", size=SMALL),
    Live(line="main", epoch=2, parent_epoch=0),
    Candidate(line="other", registry="r", size=OTHER),
)


@pytest.mark.parametrize(
    ("line", "epoch", "size"),
    [
        ("main", 0, None), ("main", 1, SMALL), ("main", 2, None), ("small", 0, SMALL),
        ("usual", 0, None), ("other", 0, OTHER), ("nobody", 0, None),
    ],
)  # fmt: skip
def test_each_line_and_epoch_has_its_own_model(line: str, epoch: int, size: ModelSize | None) -> None:
    its = config_at(CONFIG, HISTORY, line, epoch)
    expected = CONFIG.model
    if size is not None:
        expected = replace(expected, dim=size.dim, hidden=size.hidden)
    assert its == replace(CONFIG, model=expected)


def test_what_is_configured_beside_the_size_holds_for_every_epoch() -> None:
    changed = replace(CONFIG, model=replace(CONFIG.model, row_rate=0.1))
    assert config_at(changed, HISTORY, "main", 1).model.row_rate == 0.1
    assert with_size(changed, None) is changed


def test_a_candidate_that_calls_itself_as_the_live_line_does_not_change_its_model() -> None:
    its = folded(Live(line="main", epoch=0), Candidate(line="main", registry="r", size=SMALL))
    assert its.size("main", 0) is None


def test_a_size_is_known_by_what_differs_alone() -> None:
    model = ModelConfig()
    assert size_difference(model, model) is None
    assert size_difference(model, replace(model, dim=8)) == ModelSize(8, model.hidden)
    assert size_difference(model, replace(model, hidden=(9,))) == ModelSize(model.dim, (9,))


def test_a_candidate_may_have_another_ranker() -> None:
    config = Config()
    plugin = replace(config.model, ranker="sequence@1")
    size = size_difference(config.model, plugin)
    assert size == ModelSize(plugin.dim, plugin.hidden, ranker="sequence@1")
    assert with_size(config, size).model == plugin
    back = size_difference(plugin, config.model)  # the built-in one beside a configured plug-in
    assert with_size(replace(config, model=plugin), back).model == config.model
    record = unpack(pack(Live(line="main", epoch=1, size=size)), Control)  # type: ignore[arg-type]
    assert record.size == size


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vector_dim": 16}, "model.vector_dim is 16, expected 32"),
        ({"seed": 3, "features": "ids"}, "features is 'ids', .*model.seed is 3, expected 0"),
        ({"tables": TablesConfig(items=RowsConfig(admit_after=2))}, "model.tables is .*"),
        ({"row_rate": 0.5}, "model.row_rate is 0.5, expected 0.005"),
    ],
)
def test_what_else_differs_is_refused_by_name_value_and_expectation(
    changes: dict[str, object], said: str
) -> None:
    its = replace(ModelConfig(dim=8), **changes)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"{said}.*only dim, hidden and ranker may differ") as error:
        size_difference(ModelConfig(), its)
    assert "model.dim" not in str(error.value)


def test_records_from_before_there_were_sizes_are_of_the_configured_model() -> None:
    for record in (Live(line="main", epoch=3), Candidate(line="c", registry="r")):
        plain = msgspec.msgpack.decode(pack(record))
        del plain["size"]
        said = unpack(msgspec.msgpack.encode(plain), Control)  # type: ignore[arg-type]
        assert said == record and said.size is None


@pytest.mark.parametrize("size", [{"dim": 0, "hidden": [4]}, {"dim": 4, "hidden": [0]}, {"dim": 4}])
def test_a_size_that_no_model_has_makes_the_record_unreadable(size: dict[str, object]) -> None:
    plain = msgspec.msgpack.decode(pack(Live(line="main", epoch=1))) | {"size": size}
    with pytest.raises(msgspec.MsgspecError):
        unpack(msgspec.msgpack.encode(plain), Control)  # type: ignore[arg-type]
    fine = plain | {"size": {"dim": 4, "hidden": [3, 2]}}
    said = unpack(msgspec.msgpack.encode(fine), Control)  # type: ignore[arg-type]
    assert said.size == ModelSize(4, (3, 2))
