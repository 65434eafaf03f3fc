"""`recsys study experiments`, small: the figures are made by what reports are made of, and can fail."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks.studies.experiments import study_experiments as study
from benchmarks.studies.experiments.trial_world import simulate
from runtime.cli.main import app


@pytest.mark.slow
def test_the_figures_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "AA_USERS", 400)
    monkeypatch.setattr(study, "AA_LOOKS", 4)
    monkeypatch.setattr(study, "LIFT", 0.2)
    monkeypatch.setattr(study, "DAY_USERS", 20_000)
    monkeypatch.setattr(study, "LEAK", 0.4)
    monkeypatch.setattr(study, "CLEAN_DAYS", 4)
    monkeypatch.setattr(study, "KEPT", 50)
    file = tmp_path / "figures.json"
    words = ["study", "experiments", "--runs", "4", "--users", "20000", "--json", str(file)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    found = json.loads(file.read_text())
    assert all(its["ever_significant"] <= 0.5 for its in found["aa"]["worlds"].values())
    assert len(found["lift"]["promised"]) == study.LIFT_LOOKS
    assert found["leak"]["moved"]["raised"] == 1 and found["leak"]["none"]["raised"] == 0
    through = found["leak"]["through_outcomes"]
    assert through["as_counted"] and max(through["kept"]) < 0.5
    assert min(*found["assignment"]["uniform_p"], found["assignment"]["independent_p"]) > 0.001


def test_a_layer_that_hangs_on_another_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if both experiments were drawn by one hash: the study's own test sees it."""
    real = study.assign
    monkeypatch.setattr(
        study, "assign", lambda user, its: real(user, study._four("one", "ranking", (0.25,) * 4, 0.5))
    )
    found = study.measure_assignment(20_000)
    assert found["independent_p"] < 1e-9 and found["uniform_p"][0] < 1e-9


def test_no_runs_are_refused() -> None:
    done = CliRunner().invoke(app, ["study", "experiments", "--runs", "0"])
    assert done.exit_code == 2 and "--runs is 0" in done.output


def test_simulated_users_stay_as_they_are_or_come_once() -> None:
    again = simulate(np.random.default_rng(0), 2_000, 10)
    once = simulate(np.random.default_rng(0), 2_000, 10, again=False)
    shown_TU = np.diff(once.denominators_TU, axis=0, prepend=0)
    assert ((shown_TU > 0).sum(0) <= 1).all()
    assert (np.diff(again.denominators_TU, axis=0, prepend=0) > 0).sum(0).max() == 10
    rates = again.numerators_TU[-1] / np.maximum(again.denominators_TU[-1], 1)
    assert rates.std() > 0.08  # habits, not chance alone
    with pytest.raises(ValueError, match="lift is 5"):
        simulate(np.random.default_rng(0), 100, 2, lift=5.0)
