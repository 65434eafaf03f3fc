from recsys.model.model import build_model
from tests.support.small_feed import FEATURES, toy_config


def test_a_model_starts_the_same_wherever_it_is_built() -> None:
    config = toy_config().model
    one, other = build_model(FEATURES, config), build_model(FEATURES, config)
    assert one.read_dense().tobytes() == other.read_dense().tobytes()
    assert one.ranker.shape.dense > 0
