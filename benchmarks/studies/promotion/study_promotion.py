"""`recsys study promotion`: wrong promotions of candidates, and the delay of right ones.

Runs are simulated: two models see each example's true logit through noise of their own, part of which stays
with the user, and the director's rules judge them at every step. The noise determines their AUC. The
comparator is a test of fixed sample size, looked at once.
"""

from statistics import NormalDist
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.harness.commands import study_command
from benchmarks.studies.promotion.simulated_pairs import _LARGE, LIST, STEP, Pair, RunEnd, Stream, noise_for
from experiments.evidence.verdict import Evidence, Hold, Promote
from experiments.promotion.kinds.candidate import CandidateState, comparison
from experiments.statistics.comparison import log_losses
from recsys.config.promotion_config import PromotionConfig
from recsys.events.control_records import Candidate


def run_once(pair: Pair, seed: int, rules: PromotionConfig, most: int, chosen: bool = False) -> RunEnd:
    """One candidate in shadow, judged at every step, for ``most`` examples."""
    stream, compared, seen = Stream(pair, seed, chosen=chosen), comparison(rules), 0
    candidate = CandidateState(Candidate(line="candidate", registry="r"))
    while seen < most:
        compared.add(stream.step())
        seen += STEP
        decision = candidate.judge(Evidence(compared.result()), rules)
        if isinstance(decision, Promote):
            return RunEnd("promoted", seen)
        if isinstance(decision, Hold) and decision.final:
            return RunEnd("held", seen)
    return RunEnd("open", seen)


def fixed_horizon(pair: Pair, alpha: float = 0.05, power: float = 0.8) -> int:
    """Examples that a two-sided test of the log losses needs, looked at once, with this power."""
    rows = Stream(pair, 1, users=_LARGE // 20).step(_LARGE)
    gained = log_losses(rows.live_N, rows.labels_N) - log_losses(rows.candidate_N, rows.labels_N)
    per_list = gained.reshape(-1, LIST).mean(1)
    quantile = NormalDist().inv_cdf
    z = quantile(1 - alpha / 2) + quantile(power)
    return int(LIST * z**2 * per_list.var() / per_list.mean() ** 2)


def measure(
    runs: int, most: int, base: float, step: float, chosen: bool = False, sure: bool = False
) -> dict[str, Any]:
    """``runs`` each of candidates as good as live, ``step`` of AUC worse, and as much better."""
    rules, live = PromotionConfig(), noise_for(base)
    figures: dict[str, Any] = {
        "runs": runs,
        "most_examples": most,
        "auc": base,
        "chosen": chosen,
        "sure": sure,
    }
    for name, gain in (("equal", 0.0), ("worse", -step), ("better", step)):
        pair = Pair(live, noise_for(base + gain), sure)
        ended = [run_once(pair, seed, rules, most, chosen) for seed in range(runs)]
        at = [run.examples for run in ended if run.how == "promoted"]
        figures[name] = {
            "auc_gain": gain,
            **{how: sum(run.how == how for run in ended) / runs for how in ("promoted", "held", "open")},
            "median_examples_to_promote": float(np.median(at)) if at else None,
            "fixed_horizon_examples": fixed_horizon(pair) if gain > 0 else None,
        }
    return figures


@study_command
def promotion(
    runs: Annotated[int, typer.Option(help="Simulated runs of each kind of candidate.")] = 1000,
    most: Annotated[int, typer.Option(help="Examples in a run, at most.")] = 40_000,
    auc_live: Annotated[float, typer.Option("--auc", help="AUC of the live model.")] = 0.75,
    step: Annotated[float, typer.Option(help="AUC difference of the other candidates.")] = 0.01,
    chosen: Annotated[
        bool, typer.Option("--chosen", help="The live model chooses the lists, as in serving.")
    ] = False,
    sure: Annotated[bool, typer.Option("--sure", help="Both models are overconfident.")] = False,
    guard: Annotated[
        bool, typer.Option("--guard", help="Measure automatic rollbacks of a new live line instead.")
    ] = False,
) -> dict[str, Any]:
    """Wrong promotions and the delay of right ones; or, with --guard, wrong rollbacks and the delay of right
    ones."""
    if guard:
        from benchmarks.studies.promotion.study_guard import measure_guard, text_lines

        figures = measure_guard(runs, auc_live, step, chosen, sure)
        typer.echo("\n".join(text_lines(figures)))
    else:
        figures = measure(runs, most, auc_live, step, chosen, sure)
        _tell(figures)
    return figures


def _tell(figures: dict[str, Any]) -> None:
    for name in ("equal", "worse", "better"):
        kind = figures[name]
        typer.echo(
            f"{name:>7} ({kind['auc_gain']:+.3f} AUC): promoted {kind['promoted']:.1%}, held for good "
            f"{kind['held']:.1%}, still open {kind['open']:.1%}"
        )
    better = figures["better"]
    typer.echo(
        f"median examples until the better one is promoted: {better['median_examples_to_promote']}; "
        f"a fixed horizon needs {better['fixed_horizon_examples']}, known beforehand"
    )
