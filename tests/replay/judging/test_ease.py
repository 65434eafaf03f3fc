"""EASE against its definition, and when it is fitted."""

import numpy as np
import pytest

from replay.judging.ease import Ease


def rows_of(seed: int, rows: int, users: int = 30, items: int = 12) -> list[tuple[str, int]]:
    drawn = np.random.default_rng(seed).integers(0, [users, items], (rows, 2))
    return [(f"u{user}", int(item)) for user, item in drawn]


def taught(ease: Ease, rows: list[tuple[str, int]]) -> Ease:
    for user, item in rows:
        ease.learn(user, item, 0)
    return ease


def test_scores_are_those_of_the_definition() -> None:
    rows = rows_of(0, 150)
    binary = np.zeros((30, 12))
    for user, item in rows:
        binary[int(user[1:]), item] = 1
    inverse = np.linalg.inv(binary.T @ binary + 5.0 * np.eye(12))
    weights = np.eye(12) - inverse @ np.diag(1 / np.diag(inverse))
    assert np.abs(np.diag(weights)).max() < 1e-9
    items, scores = taught(Ease(5.0, at_least=100), rows).scores("u3", 0)
    assert scores == pytest.approx((binary[3] @ weights)[items], abs=1e-5)


def test_groups_get_their_own_items() -> None:
    """Half of the users take even items, half odd ones; each lacks one."""
    ease = Ease(1.0, at_least=1)
    for user in range(40):
        taught(ease, [(f"u{user}", item) for item in range(user % 2, 20, 2) if item // 2 != user % 10])
    for user in range(40):
        items, scores = ease.scores(f"u{user}", 0)
        own = {item for item in range(user % 2, 20, 2) if item // 2 != user % 10}
        best = max(
            (score, item) for item, score in zip(items.tolist(), scores, strict=True) if item not in own
        )
        assert best[1] % 2 == user % 2


def test_it_is_fitted_with_each_tenth_more_rows_when_asked() -> None:
    ease, fits = Ease(at_least=100), []
    for n, row in enumerate(rows_of(1, 300), 1):
        taught(ease, [row])
        if n >= 50:
            ease.scores("u1", 0)
        fits.append(ease.fits)
    assert fits[98] == 0 and fits[99] == fits[108] == 1 and fits[109] == 2
    assert fits[-1] == pytest.approx(np.log(3) / np.log(1.1), abs=2)
    assert len(taught(Ease(), rows_of(1, 999)).scores("u1", 0)[0]) == 0


def test_only_the_most_engaged_items_have_scores() -> None:
    rows = [(f"u{user}", item) for item in range(30) for user in range(item)]
    ease = taught(Ease(most_items=5, at_least=1), rows)
    items, _ = ease.scores("u0", 0)
    assert sorted(items.tolist()) == [25, 26, 27, 28, 29]
    assert len(ease.scores("nobody", 0)[0]) == 0
    ease.learn("late", 3, 0)
    ease.learn("late", 9_999, 0)  # no item of the fit
    assert len(ease.scores("late", 0)[0]) == 0
