"""`recsys study promotion`: how often a candidate is promoted that shouldn't be, how soon one that should.

Runs are simulated: two models see each example's true logit through noise of their own, part of which stays
with the user, and are judged at every step by the rules that the director judges by. The noise decides their
AUC. Beside it stands the test that one would pick instead: a sample size fixed beforehand, looked at once.
"""

import json
import time
from dataclasses import dataclass
from math import pi
from pathlib import Path
from statistics import NormalDist
from typing import Annotated, Any, Final

import numpy as np
import typer
from numpy.typing import NDArray

from experiments.comparison import Paired, log_losses
from experiments.promotion import SHADOW, Evidence, Hold, Promote, comparison, judge
from recsys.metrics import auc
from recsys.promotion_config import PromotionConfig

Floats = NDArray[np.float64]
STEP: Final = 128  # examples of a step that are scored
LIST: Final = 8  # of one user in a row
POOL: Final = 100  # that live draws a list from
_TEMPERATURE: Final = 0.03
_MEAN, _SPREAD = -0.6, 1.3  # of true logits
_OF_USER: Final = 0.3  # the share of a model's noise variance that stays with a user
_SHARED: Final = 0.8  # the correlation of two models' noise
_USERS: Final = 2_000
_LARGE: Final = 400_000


@dataclass(frozen=True)
class Pair:
    """Two models by the standard deviations of their noise. ``sure``: both take what they see for the truth,
    and so are too sure of it."""

    live: float
    candidate: float
    sure: bool = False


def predicted(seen_N: Floats, noise: float, sure: bool = False) -> Floats:
    """The probability by a logit seen through noise: calibrated (MacKay 1992, equation for the moderated
    output), or too sure."""
    if sure:
        out: Floats = 1 / (1 + np.exp(-seen_N))
        return out
    kept = _SPREAD**2 / (_SPREAD**2 + noise**2)
    mean_N, variance = _MEAN + kept * (seen_N - _MEAN), kept * noise**2
    calibrated: Floats = 1 / (1 + np.exp(-mean_N / np.sqrt(1 + pi * variance / 8)))
    return calibrated


class Stream:
    """Examples of a pair of models, step by step. ``chosen``: live draws each list from a pool of ``POOL``,
    as it does where it serves; else they are anybody's."""

    def __init__(self, pair: Pair, seed: int, users: int = _USERS, chosen: bool = False) -> None:
        self._pair, self._draw, self._chosen = pair, np.random.default_rng(seed), chosen
        self._users_2U = _correlated(self._draw, users)

    def step(self, size: int = STEP) -> Paired:
        draw, pair, lists = self._draw, self._pair, -(-size // LIST)
        pool = POOL if self._chosen else LIST
        users = draw.integers(0, self._users_2U.shape[1], lists).repeat(pool)
        true_N = draw.normal(_MEAN, _SPREAD, lists * pool)
        noise_2N = np.sqrt(_OF_USER) * self._users_2U[:, users] + np.sqrt(
            1 - _OF_USER
        ) * _correlated(draw, lists * pool)
        live = predicted(true_N + pair.live * noise_2N[0], pair.live, pair.sure)
        candidate = predicted(true_N + pair.candidate * noise_2N[1], pair.candidate, pair.sure)
        labels = (draw.random(lists * pool) < 1 / (1 + np.exp(-true_N))).astype(np.float64)
        kept = self._kept(live, lists, pool)[:size]
        return Paired(users[kept], live[kept], candidate[kept], labels[kept])

    def _kept(self, live_N: Floats, lists: int, pool: int) -> NDArray[np.int64]:
        """The places of those that are shown: drawn without replacement by softmax (Gumbel's trick)."""
        if pool == LIST:
            return np.arange(lists * pool)
        keys = live_N / _TEMPERATURE + self._draw.gumbel(size=len(live_N))
        best = np.argsort(-keys.reshape(lists, pool), axis=1)[:, :LIST]
        return (best + pool * np.arange(lists)[:, None]).ravel()


def _correlated(draw: np.random.Generator, size: int) -> Floats:
    shared, own = draw.normal(size=size), draw.normal(size=(2, size))
    return np.sqrt(_SHARED) * shared + np.sqrt(1 - _SHARED) * own


def noise_for(wanted: float) -> float:
    """The noise with which a model has this AUC, by bisection over one large sample."""
    draw = np.random.default_rng(0)
    true_N, noise_N = draw.normal(_MEAN, _SPREAD, _LARGE), draw.normal(size=_LARGE)
    labels = draw.random(_LARGE) < 1 / (1 + np.exp(-true_N))
    low, high = 0.0, 10.0
    for _ in range(20):
        middle = (low + high) / 2
        if auc(true_N + middle * noise_N, labels) > wanted:
            low = middle
        else:
            high = middle
    return low


@dataclass(frozen=True)
class Ended:
    """How a run ended: promoted, held for good, or neither by its last example; and at which example."""

    how: str
    examples: int


def run_once(
    pair: Pair, seed: int, rules: PromotionConfig, most: int, chosen: bool = False
) -> Ended:
    """One candidate in shadow, judged at every step, for ``most`` examples."""
    stream, compared, seen = Stream(pair, seed, chosen=chosen), comparison(rules), 0
    while seen < most:
        compared.add(stream.step())
        seen += STEP
        said = judge(Evidence(SHADOW, compared.result()), rules)
        if isinstance(said, Promote):
            return Ended("promoted", seen)
        if isinstance(said, Hold) and said.final:
            return Ended("held", seen)
    return Ended("open", seen)


def fixed_horizon(pair: Pair, alpha: float = 0.05, power: float = 0.8) -> int:
    """The examples that a two-sided test of the log losses needs, looked at once, with this power."""
    rows = Stream(pair, 1, users=_LARGE // 20).step(_LARGE)
    gained = log_losses(rows.live_N, rows.labels_N) - log_losses(rows.candidate_N, rows.labels_N)
    per_list = gained.reshape(-1, LIST).mean(1)
    quantile = NormalDist().inv_cdf
    z = quantile(1 - alpha / 2) + quantile(power)
    return int(LIST * z**2 * per_list.var() / per_list.mean() ** 2)


def measure(
    runs: int, most: int, base: float, step: float, chosen: bool = False, sure: bool = False
) -> dict[str, Any]:
    """Candidates as good as live, ``step`` of AUC worse, and as much better; ``runs`` of each."""
    rules, live, began = PromotionConfig(), noise_for(base), time.monotonic()
    found: dict[str, Any] = {
        "study": "promotion",
        "runs": runs,
        "most_examples": most,
        "auc": base,
        "chosen": chosen,
        "sure": sure,
    }
    for name, gain in (("equal", 0.0), ("worse", -step), ("better", step)):
        pair = Pair(live, noise_for(base + gain), sure)
        ended = [run_once(pair, seed, rules, most, chosen) for seed in range(runs)]
        at = [one.examples for one in ended if one.how == "promoted"]
        found[name] = {
            "auc_gain": gain,
            **{how: sum(one.how == how for one in ended) / runs for how in ("promoted", "held", "open")},
            "median_examples_to_promote": float(np.median(at)) if at else None,
            "fixed_horizon_examples": fixed_horizon(pair) if gain > 0 else None,
        }  # fmt: skip
    return found | {"seconds": round(time.monotonic() - began, 1)}


def promotion(
    runs: Annotated[int, typer.Option(help="Simulated runs of each kind of candidate.")] = 1000,
    most: Annotated[int, typer.Option(help="Examples in a run, at the most.")] = 40_000,
    auc_live: Annotated[float, typer.Option("--auc", help="Of the live model.")] = 0.75,
    step: Annotated[float, typer.Option(help="How much AUC the others differ by.")] = 0.01,
    chosen: Annotated[
        bool, typer.Option("--chosen", help="Live chooses what is shown, as where it serves.")
    ] = False,
    sure: Annotated[
        bool, typer.Option("--sure", help="Both models take what they see for the truth.")
    ] = False,
    guard: Annotated[
        bool,
        typer.Option("--guard", help="How often a new live line is taken back by itself, instead."),
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here.")
    ] = None,
) -> None:
    """How often a candidate is promoted that is no better, and how soon one that is; or, with --guard, a live
    line taken back that is no worse, and how soon one that is."""
    if guard:
        from recsys.cli.study_guard import measure_guard, told

        found = measure_guard(runs, auc_live, step, chosen, sure)
        typer.echo("\n".join(told(found)))
    else:
        found = measure(runs, most, auc_live, step, chosen, sure)
        _tell(found)
    if json_file is not None:
        json_file.write_text(json.dumps(found, indent=1) + "\n")


def _tell(found: dict[str, Any]) -> None:
    for name in ("equal", "worse", "better"):
        its = found[name]
        typer.echo(
            f"{name:>7} ({its['auc_gain']:+.3f} AUC): promoted {its['promoted']:.1%}, held for good "
            f"{its['held']:.1%}, still open {its['open']:.1%}"
        )
    better = found["better"]
    typer.echo(
        f"median examples until the better one is promoted: {better['median_examples_to_promote']}; "
        f"a fixed horizon needs {better['fixed_horizon_examples']}, known beforehand"
    )
