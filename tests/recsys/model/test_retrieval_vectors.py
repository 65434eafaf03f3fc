import numpy as np
import pytest
import torch

from recsys.events.hashing import key_of
from recsys.model.retrieval_vectors import UserSide, content_vectors, field_vectors, retrieval_loss

DIM = 16


def keys(*names: str) -> list[int]:
    return [key_of("item.tags", name) if name else 0 for name in names]


def test_content_is_a_function_of_the_keys_alone() -> None:
    together = content_vectors(np.array([keys("a", "b"), keys("c", ""), keys("b", "a")]), DIM)
    alone = content_vectors(np.array([keys("a", "b")]), DIM)
    assert (together[0] == alone[0]).all()
    np.testing.assert_allclose(together[0], together[2], atol=1e-6)
    assert content_vectors(np.zeros((0, 2), np.int64), DIM).shape == (0, DIM)


def test_an_item_without_content_starts_at_zero_and_any_other_at_about_the_same_norm() -> None:
    assert not content_vectors(np.zeros((2, 3), np.int64), DIM).any()
    assert not content_vectors(np.zeros((2, 0), np.int64), DIM).any()
    assert not content_vectors(np.array([keys("a", "b")]), DIM)[:, -1].any()  # the bias is learned
    rng = np.random.default_rng(0)
    for count in (1, 2, 4):
        groups = rng.integers(1, 2**60, (300, count))
        norms = np.linalg.norm(content_vectors(groups, DIM), axis=1)
        assert norms.mean() == pytest.approx(0.8, abs=0.05)


def test_items_that_share_a_tag_start_nearer_to_each_other() -> None:
    rng = np.random.default_rng(1)
    groups = rng.integers(1, 2**60, (200, 2))
    groups[:100, 0] = groups[0, 0]
    vectors = content_vectors(groups, DIM)
    near = (vectors[:100] @ vectors[:100].T).mean()
    assert near > (vectors[:100] @ vectors[100:].T).mean() + 0.2


def test_the_user_side_goes_to_what_was_liked_and_away_from_what_was_passed() -> None:
    side = UserSide(DIM)
    history = torch.randn(1, 3, DIM, generator=torch.Generator().manual_seed(0))
    outcomes = torch.zeros(1, 3, 4)
    outcomes[0, :2, -1] = 1.0  # the third entry is none
    outcomes[0, 0, 0] = 1.0  # the first was liked
    vector = side(torch.zeros(1, DIM), history, outcomes)[0].detach()
    expected = history[0, 0] - 0.3 * history[0, 1]
    np.testing.assert_allclose(vector[:-1], expected[:-1], atol=1e-6)
    assert vector[-1] == 1.0  # times the bias of an item
    nothing = side(torch.ones(1, DIM), torch.zeros(1, 0, DIM), torch.zeros(1, 0, 4))
    assert (nothing == 1.0).all()


def loss(liked: list[float], items: list[int], seed: int = 0, log_q: float = 0.0) -> float:
    """``log_q``: of the last item; 0 of the others."""
    draw = torch.Generator().manual_seed(seed)
    users, vectors = (torch.randn(len(items), DIM, generator=draw) for _ in range(2))
    ids, wanted = torch.tensor(items), torch.tensor(liked)
    log_q_B = torch.zeros(len(items))
    log_q_B[-1] = log_q
    return float(retrieval_loss(users, vectors, ids, wanted, torch.tensor(1.0), log_q_B))


def test_a_negative_counts_less_the_more_often_it_is_one() -> None:
    often, seldom = (loss([1.0, 0.0, 0.0], [1, 2, 3], log_q=log_q) for log_q in (2.0, -2.0))
    assert often < loss([1.0, 0.0, 0.0], [1, 2, 3]) < seldom
    liked = [loss([0.0, 0.0, 1.0], [1, 2, 3], log_q=log_q) for log_q in (-2.0, 0.0, 2.0)]
    assert liked == sorted(liked)


def test_only_liked_items_are_held_against_the_others() -> None:
    assert loss([0.0, 0.0, 0.0], [1, 2, 3]) == 0.0
    single = [loss([float(k == n) for k in range(3)], [1, 2, 3]) for n in range(3)]
    assert loss([1.0, 1.0, 1.0], [1, 2, 3]) == pytest.approx(sum(single), rel=1e-5)
    assert min(single) > 0


def test_the_same_item_elsewhere_in_the_batch_is_no_negative() -> None:
    assert loss([1.0, 0.0], [7, 7]) == pytest.approx(0.0, abs=1e-6)
    assert loss([1.0, 0.0, 0.0], [7, 7, 8]) < loss([1.0, 0.0, 0.0], [7, 9, 8])


def test_an_item_s_own_vector_keeps_what_is_near_near_whatever_its_scale() -> None:
    random, dim = np.random.default_rng(1), 64
    base = random.normal(size=(1, 24)).astype(np.float32)
    near, far = base + 0.1 * random.normal(size=(1, 24)), random.normal(size=(1, 24))
    numbers = np.concatenate([base, 7 * base, near, far, 0 * base]).astype(np.float32)
    out = field_vectors(numbers, (("image", 24),), dim)
    np.testing.assert_allclose(out[0], out[1], atol=1e-5)
    norms = np.linalg.norm(out, axis=1)
    assert (np.abs(norms[:4] - 0.8) < 0.25).all() and norms[4] == 0.0
    cosines = out[0] @ out[1:4].T / norms[0] / norms[1:4]
    assert cosines[1] > 0.95 and abs(cosines[2]) < 0.5
    alone = np.concatenate([field_vectors(row[None], (("image", 24),), dim) for row in numbers])
    assert alone.tobytes() == out.tobytes()  # however many are projected at once


def test_fields_have_directions_of_their_own_and_add_up() -> None:
    one = np.array([[1.0, 0.0]], np.float32)
    fields = (("image", 2), ("sound", 2))
    both = field_vectors(np.concatenate([one, one], 1), fields, DIM)
    image = field_vectors(one, fields[:1], DIM)
    sound = field_vectors(one, fields[1:], DIM)
    assert not np.allclose(image, sound)
    np.testing.assert_allclose(both, (image + sound) / np.sqrt(2), atol=1e-6)
    silent = field_vectors(np.concatenate([one, 0 * one], 1), fields, DIM)
    np.testing.assert_allclose(silent, image, atol=1e-6)
