"""A learner on a GPU, where there is one; and what is said where there is none."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from recsys.config.system_config import TrainerConfig
from recsys.model.model import build_model
from tests.support.training.learner_cases import CONFIG, learned, learner
from tests.support.training.small_feed import FEATURES, example
from training.continual.learner import Learner

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


def test_only_known_devices_are_taken() -> None:
    assert TrainerConfig(device="cuda").gpus_per_worker == 0.5
    with pytest.raises(ValueError, match=r"trainer\.device.*'tpu'.*cpu or cuda"):
        TrainerConfig(device="tpu")
    with pytest.raises(ValueError, match=r"trainer\.gpus_per_worker"):
        TrainerConfig(gpus_per_worker=0.0)


def test_a_gpu_that_is_not_there_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"trainer\.device is 'cuda'.* set it to cpu"):
        Learner(build_model(FEATURES, CONFIG.model), device="cuda")


@needs_gpu
def test_a_gpu_learns_what_the_processor_does() -> None:
    examples = [example(n) for n in range(16)]
    here, there = learner(), learner(device="cuda")
    a, b = (learned(its, its.prepare(examples)) for its in (here, there))
    np.testing.assert_allclose(a.probabilities_BL, b.probabilities_BL, atol=1e-4)
    np.testing.assert_allclose(a.dense, b.dense, rtol=1e-3, atol=1e-4)
    for table, (keys, gradients, _) in a.gradients.items():
        assert keys.tolist() == b.gradients[table][0].tolist()
        np.testing.assert_allclose(gradients, b.gradients[table][1], rtol=1e-3, atol=1e-4)
    assert a.metrics == pytest.approx(b.metrics, rel=1e-3)


@needs_gpu
def test_a_gpu_gives_the_same_bits_again() -> None:
    its = Learner(build_model(FEATURES, replace(CONFIG.model, hidden=(256, 64))), device="cuda")
    lane = its.prepare([example(n) for n in range(64)])
    once, again = learned(its, lane), learned(its, lane)
    assert once.dense.tobytes() == again.dense.tobytes()
    for table, (_, gradients, _) in once.gradients.items():
        assert gradients.tobytes() == again.gradients[table][1].tobytes()
