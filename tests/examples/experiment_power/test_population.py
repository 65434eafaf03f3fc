"""Who would be in an experiment: users of the examples on a log, by running sums at equally far looks."""

import numpy as np
import pytest

from examples.experiment_power.population import read_population
from experiments.assignment.design import metric_of
from recsys.events.records import EXAMPLES
from recsys.log.protocol import Append
from tests.support.training.experiment_log import ITEMS, LABELS, ToyTrial, of_clicks

LONG, PER_USER = metric_of("long_view", LABELS), metric_of("shown_per_user", LABELS)


def test_all_that_was_shown_is_in_the_last_look_and_sums_only_grow() -> None:
    toy = ToyTrial()
    for hour in range(6):
        for n in range(10 * hour, 10 * hour + 30):  # some come again, some for the first time
            toy.serve(f"u{n}", {})
        toy.pass_time(1)
    toy.log.append(EXAMPLES, [Append(0, b"", b"\xff")])  # passed over
    toy.log.append(EXAMPLES, of_clicks(toy.log))
    toy.pass_time(0.1)
    seen = read_population(toy.log, LABELS, [LONG, PER_USER], looks=6)
    above_UT, below_UT = seen.outcomes.daily(LONG, 0)
    assert seen.users == len(above_UT) == 80 + 8 and seen.days == pytest.approx(6 / 24, rel=0.1)
    assert (np.diff(below_UT, axis=1) >= 0).all() and below_UT.shape[1] == 6
    assert below_UT[:, -1].sum() == 6 * 30 * ITEMS + 7 * 8 * ITEMS
    assert 0.3 < seen.mean(LONG) < 0.5 and seen.mean(PER_USER) > ITEMS
    looks_TT = seen.covariance(LONG)
    assert looks_TT.shape == (6, 6) and np.allclose(looks_TT, looks_TT.T)
    assert looks_TT[0, 0] > looks_TT[5, 5] > 0  # later looks know more
    assert (np.diff((seen.outcomes.daily(PER_USER, 0)[1] > 0).sum(0)) >= 0).all()


def test_a_log_without_examples_is_refused() -> None:
    with pytest.raises(ValueError, match="no examples yet; give --mean"):
        read_population(ToyTrial().log, LABELS, [LONG])
    toy = ToyTrial()
    for hour in range(3):
        toy.serve("u1", {})
        toy.pass_time(hour)
    clicks = ToyTrial()
    clicks.log.append(EXAMPLES, of_clicks(toy.log))
    with pytest.raises(ValueError, match="no examples yet; give --mean"):
        read_population(clicks.log, LABELS, [LONG])
