from dataclasses import replace

import pytest
import torch

from recsys.config.system_config import ModelConfig, digest
from recsys.model.model import build_model
from recsys.model.ranker import Ranker, RankerModule, RankerShape
from tests.support.training.small_feed import FEATURES, toy_config

HERE = __name__


class Constant(RankerModule):
    """A ranker with one number for all."""

    version = "2"

    def __init__(self, shape: RankerShape, seed: int = 0) -> None:
        super().__init__(shape)
        self.logit = torch.nn.Parameter(torch.tensor(float(seed)))

    def forward(self, pooled_BSR, history_BTR, outcomes_BTO, dense_BF):  # type: ignore[no-untyped-def]
        return self.logit.expand(len(pooled_BSR), self.shape.outputs)


def test_a_model_starts_the_same_wherever_it_is_built() -> None:
    config = toy_config().model
    one, other = build_model(FEATURES, config), build_model(FEATURES, config)
    assert one.read_dense().tobytes() == other.read_dense().tobytes()
    assert one.ranker.shape.dense > 0


def test_the_configuration_may_name_a_ranker_of_another_package() -> None:
    config = toy_config().model
    model = build_model(FEATURES, replace(config, ranker=f"{HERE}:Constant@2"))
    assert type(model.ranker) is Constant and model.dense_size() > 1
    assert type(build_model(FEATURES, config).ranker) is Ranker


@pytest.mark.parametrize(
    ("ranker", "reason"),
    [
        (f"{HERE}:Constant@1", "its version is '2': declare .*:Constant@2"),
        (f"{HERE}:RankerShape@1", "expected a subclass of recsys.model.ranker.RankerModule"),
        ("no_such_name@1", "no plug-in 'no_such_name' of the group 'recsys.models'"),
    ],
)
def test_another_version_no_ranker_and_a_missing_plug_in_are_refused(ranker: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        build_model(FEATURES, ModelConfig(ranker=ranker))


def test_a_ranker_that_cannot_be_made_is_named_also_where_the_configuration_names_none() -> None:
    class Unmade(Constant):
        def __init__(self, shape: RankerShape) -> None:
            super().__init__(shape)

    with pytest.raises(ValueError, match="^model.ranker 'Unmade' can't be made .*TypeError"):
        build_model(FEATURES, toy_config().model, Unmade)  # type: ignore[arg-type]


@pytest.mark.parametrize("ranker", ["", "sequence", "sequence@", "@1", "a@1@2"])
def test_a_ranker_is_configured_with_its_version(ranker: str) -> None:
    with pytest.raises(ValueError, match="model.ranker is .* as in sequence@1, or none"):
        ModelConfig(ranker=ranker)


def test_name_and_version_are_in_the_digest_and_the_built_in_ranker_is_not() -> None:
    built_in = ModelConfig()
    plugins = [replace(built_in, ranker=name) for name in ("a@1", "a@2", "b@1")]
    assert digest(built_in) == "801f41918afd8872421edeccc46962d9"  # unset, it isn't encoded
    assert len({digest(config) for config in (built_in, *plugins)}) == 4
