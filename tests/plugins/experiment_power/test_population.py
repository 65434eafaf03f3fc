"""Who would be in an experiment: users of the examples on a log, by running sums at equally far looks."""

import numpy as np
import pytest
from msgspec import structs

from experiments.assignment.design import metric_of
from experiments.statistics.outcomes import DAY_MS
from plugins.experiment_power.population import read_population
from recsys.events.records import EXAMPLES, Example, pack, unpack
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


def test_lists_made_of_clicks_before_and_after_do_not_lengthen_the_time() -> None:
    toy = ToyTrial()
    for hour in range(3):
        toy.serve(f"u{hour}", {})
        toy.pass_time(1)
    clicks = of_clicks(toy.log)
    alone = read_population(toy.log, LABELS, [LONG], looks=2)
    both = ToyTrial()
    both.log.append(EXAMPLES, [moved(record, -50 * DAY_MS) for record in clicks])
    for partition in range(2):
        records = toy.log.read(EXAMPLES, partition, 0, 1_000)
        both.log.append(EXAMPLES, [Append(partition, b"", record.value) for record in records])
    both.log.append(EXAMPLES, [moved(record, 50 * DAY_MS) for record in clicks])
    among = read_population(both.log, LABELS, [LONG], looks=2)
    assert among.days == alone.days and among.users == alone.users
    assert np.array_equal(among.outcomes.daily(LONG, 0), alone.outcomes.daily(LONG, 0))


def moved(example: Append, by_ms: int) -> Append:
    at = unpack(example.value, Example)
    times = {"shown_ms": at.shown_ms + by_ms, "closed_ms": at.closed_ms + by_ms}
    return Append(example.partition, b"", pack(structs.replace(at, **times)))


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
