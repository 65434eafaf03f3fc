"""The bench of access measures each credential."""

from benchmarks.answers.bench_access import measure_access


def test_each_credential_has_a_cost() -> None:
    figures = measure_access(100)
    assert set(figures["answer_us"]) == {"key", "user_token"}
    assert figures["first_sight_of_a_user_token_us"] > 0 and figures["bar_us"] == 60
