import numpy as np
import pytest

from parameter_server.table import kernels
from parameter_server.table.dense import Dense
from parameter_server.table.kernels import BETA_1, BETA_2, EPSILON


def test_updates_are_torch_s_adam():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    start = rng.standard_normal(30).astype(np.float32)
    dense, weights = Dense(start, 0.01), torch.nn.Parameter(torch.from_numpy(start.copy()))
    optimizer = torch.optim.Adam([weights], lr=0.01)
    for _ in range(50):
        gradient = rng.standard_normal(30).astype(np.float32)
        assert dense.apply(gradient)
        weights.grad = torch.from_numpy(gradient)
        optimizer.step()
    np.testing.assert_allclose(dense.values, weights.detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("size", [0, 1, 3, 7, 17, 63, 129, 1001])
def test_the_compiled_step_has_the_bits_of_the_formula(size):
    rng, one = np.random.default_rng(size), np.float32(1)
    beta_1, beta_2, epsilon = np.float32(BETA_1), np.float32(BETA_2), np.float32(EPSILON)
    rate, unbiased, keep = np.float32(0.013), np.float32(1.7), np.float32(0.83)
    w, a, m, v = (rng.standard_normal(size).astype(np.float32) for _ in range(4))
    v *= v
    for _ in range(3):
        g = rng.standard_normal(size).astype(np.float32)
        out = m.copy(), v.copy(), np.empty_like(w), np.empty_like(a)
        kernels.adam(w, a, g, rate, unbiased, keep, *out)
        m = beta_1 * m + (one - beta_1) * g
        v = beta_2 * v + (one - beta_2) * (g * g)
        w = w - rate * m / (np.sqrt(v * unbiased) + epsilon)
        a = keep * a + (one - keep) * w
        assert [x.tobytes() for x in out] == [x.tobytes() for x in (m, v, w, a)]


def test_epsilon_is_added_outside_the_root():
    dense = Dense(np.zeros(2, np.float32), 0.1)
    dense.apply(np.full(2, 1e-7, np.float32))
    np.testing.assert_allclose(dense.values, -0.1 / 1.1, rtol=1e-4)  # inside it would be -0.0001


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1e9])
def test_a_bad_gradient_changes_nothing(bad):
    dense = Dense(np.ones(3, np.float32), 0.01)
    dense.apply(np.ones(3, np.float32))
    before = dense.digest()
    assert not dense.apply(np.array([0, bad, 0], np.float32))
    assert dense.digest() == before


def test_what_was_handed_out_stays_as_it_was():
    dense = Dense(np.ones(3, np.float32), 0.01)
    values = dense.values
    dense.apply(np.ones(3, np.float32))
    assert (values == 1).all() and (dense.values != 1).all()


def test_what_is_served_is_the_running_average():
    rng, dense = np.random.default_rng(1), Dense(np.zeros(4, np.float32), 0.1, average=0.9)
    assert (dense.averaged == dense.values).all()
    expected = np.zeros(4)
    for step in range(1, 201):
        dense.apply(rng.standard_normal(4).astype(np.float32))
        keep = min(0.9, (1 + step) / (10 + step))
        expected = keep * expected + (1 - keep) * dense.values
    np.testing.assert_allclose(dense.averaged, expected, rtol=1e-4)
    assert (dense.averaged != dense.values).all()


def test_without_an_average_the_newest_is_served():
    dense = Dense(np.ones(3, np.float32), 0.01)
    dense.apply(np.ones(3, np.float32))
    assert (dense.averaged == dense.values).all()


def test_it_goes_on_from_an_export():
    one = Dense(np.ones(3, np.float32), 0.01, average=0.5)
    other = Dense(np.zeros(3, np.float32), 0.01, average=0.5)
    one.apply(np.ones(3, np.float32))
    other.load(one.export())
    one.apply(np.ones(3, np.float32))
    assert other.apply(np.ones(3, np.float32)) and one.digest() == other.digest()


def test_another_model_is_an_error():
    with pytest.raises(ValueError, match="expected \\(3,\\)"):
        Dense(np.ones(3, np.float32), 0.01).apply(np.ones(4, np.float32))
    with pytest.raises(ValueError, match="4 dense parameters, the model 3"):
        Dense(np.ones(3, np.float32), 0.01).load(Dense(np.ones(4, np.float32), 0.01).export())


def test_a_new_line_learns_faster_and_settles_at_the_usual_rate() -> None:
    usual, quick = (Dense(np.zeros(1, np.float32), 0.01), Dense(np.zeros(1, np.float32), 0.01, first=4.0))
    moved = []
    for _ in range(200):
        before = usual.values, quick.values
        for dense in (usual, quick):
            dense.apply(np.ones(1, np.float32))  # Adam then moves by its rate
        moved.append(float((quick.values - before[1])[0] / (usual.values - before[0])[0]))
    assert moved[0] == pytest.approx(4 / (1 + 1 / 50), rel=1e-3)
    assert moved[49] == pytest.approx(2.0, rel=1e-3)
    assert moved[149:] == pytest.approx([1.0] * 51, rel=1e-3)


def test_a_loaded_line_goes_on_where_its_rate_was() -> None:
    one = Dense(np.zeros(1, np.float32), 0.01, first=9.0)
    for _ in range(7):
        one.apply(np.ones(1, np.float32))
    other = Dense(np.zeros(1, np.float32), 0.01, first=9.0)
    other.load(one.export())
    for dense in (one, other):
        dense.apply(np.ones(1, np.float32))
    assert one.digest() == other.digest()


def test_steps_at_a_lower_rate_move_the_average_less() -> None:
    """Four steps at half the rate count as one in the average; a raised rate changes nothing in it."""
    kept = {}
    for rate in (0.5, 1.0, 2.0):
        dense = Dense(np.zeros(1, np.float32), rate=0.1, average=0.9)
        for _ in range(2_000):
            dense.apply(np.ones(1, np.float32), rate)
        before, values = dense.averaged, dense.values
        dense.apply(np.zeros(1, np.float32), rate)
        kept[rate] = float(((dense.averaged - dense.values) / (before - dense.values))[0])
        assert dense.values[0] < values[0]
    assert kept[0.5] == pytest.approx(0.9**0.25, abs=1e-3)
    assert kept[1.0] == pytest.approx(0.9, abs=1e-3) == kept[2.0]
