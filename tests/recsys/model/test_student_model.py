from dataclasses import replace

import pytest

from recsys.config.system_config import ModelConfig
from recsys.model.student_model import fixed_differences, is_smaller, shown, student_model

SYSTEM = ModelConfig(dim=16, hidden=(128, 64), vector_dim=32, seed=4)


def test_what_is_not_named_is_the_systems() -> None:
    assert student_model("dim=8", SYSTEM) == replace(SYSTEM, dim=8)
    assert student_model("hidden=64x32", SYSTEM) == replace(SYSTEM, hidden=(64, 32))
    assert student_model(" dim = 8, hidden=32 ", SYSTEM) == replace(SYSTEM, dim=8, hidden=(32,))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("vector_dim=16", "'vector_dim=16' is given, expected dim and hidden"),
        ("dim", "'dim' is given"),
        ("dim=8,dim=4", "'dim=4' is given, expected dim and hidden, each once"),
        ("dim=8,", "'' is given"),
        ("dim=eight", "dim is 'eight', expected positive numbers"),
        ("dim=0", "dim is '0'"),
        ("dim=8x4", "dim is '8x4'"),
        ("hidden=64x", "hidden is '64x'"),
        ("dim=16", r"dim is 16, hidden 128x64, expected no number above"),
        ("dim=8,hidden=256", r"hidden 256, expected no number above the system's \(16, 128x64\)"),
        ("hidden=64x64x64", "hidden 64x64x64, expected no number above"),
    ],
)
def test_what_is_no_student_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        student_model(text, SYSTEM)


def test_only_widths_of_the_ranker_may_differ() -> None:
    assert fixed_differences(replace(SYSTEM, dim=8, hidden=(32,)), SYSTEM) == {}
    other = replace(SYSTEM, dim=8, vector_dim=16, features="ids")
    assert fixed_differences(other, SYSTEM) == {"features": ("ids", "all"), "vector_dim": (16, 32)}
    assert is_smaller(replace(SYSTEM, hidden=()), SYSTEM) and not is_smaller(SYSTEM, SYSTEM)
    assert shown(()) == "none" and shown((64, 32)) == "64x32"
