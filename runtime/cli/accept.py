"""``recsys accept int8 DATA``: what rows as int8 cost in AUC, and whether they may be served.

One replay learns; beside it the ranker scores each request with rows as they are learned, rounded to half
precision, and as int8, so that all are judged on the same rows of the same learner.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import typer
from numpy.typing import NDArray

from experiments.promotion.acceptance import Accept, RowFormEvidence, Refuse, decide, input_digest
from recsys.config.loader import load
from recsys.config.system_config import Config, digest
from recsys.features.feature_set import FeatureSet
from recsys.model.prediction_metrics import auc, paired_auc_interval
from replay.datasets.dataset import DataError, Dataset
from replay.datasets.open_dataset import open_dataset
from replay.direct_loop import DirectLoop
from replay.parameter_copies import Copy, SideBySide, Sync
from replay.predictions import Predictions, write_report
from replay.replay_report import judged_rows, with_bar
from replay.replay_run import Progress, ReplayOptions, config_for, replay_with
from runtime.cli.common import check_folders
from runtime.supervision.acceptance_file import write_accepted
from serving.replica.int8_rows import Int8Rows
from serving.replica.row_store import RowStore

_FORMS: Final = ("float32", "fp16", "int8")  # of published rows; float32 is what is learned
_REQUEST: Final = 900  # distinct rows that a request of 300 candidates needs, about
_LOOKUPS: Final = 300


@dataclass
class ByForm(SideBySide):
    """A player beside whose learner each form of the rows is served."""

    def _made(self) -> list[Copy]:
        copies = []
        for form in _FORMS:
            published = "fp32" if form == "float32" else form
            server = replace(self.config.parameter_server, delta_format=published)
            config = replace(self.config, parameter_server=server)
            store = Int8Rows if form == "int8" else RowStore
            copies.append(Copy(self.features, config, Sync(form), store, published))
        return copies


def measure(
    dataset: Dataset, options: ReplayOptions, base: Config, progress: Progress = iter
) -> RowFormEvidence:
    """Replays the data and says what each form gives and takes."""
    whole = replace(base.parameter_server, delta_format="fp32", delta_kb=0.0)
    config = config_for(dataset, options, replace(base, parameter_server=whole))
    features = FeatureSet(dataset.schema, options.features, config.sessions.history)
    loop = DirectLoop(features, config)
    player = ByForm(features, config, loop)
    rows = replay_with(player, dataset, options, progress, loop.digest).predictions
    judged_N = _judged(dataset, rows)
    labels = np.asarray(rows.labels[dataset.labels[0]])[judged_N]
    users = np.array([str(user) for user in rows.user_id])[judged_N]
    scores = dict(zip(_FORMS, (copy.scores()[judged_N] for copy in player.copies), strict=True))
    between = paired_auc_interval(scores["float32"], scores["int8"], labels, users)
    stores = {copy.sync.name: copy.rows for copy in player.copies}
    return RowFormEvidence(
        features=input_digest(features),
        model=digest(base.model),
        data=dataset.name,
        rows=int(judged_N.sum()),
        users=len(np.unique(users)),
        auc={form: round(auc(its, labels), 5) for form, its in scores.items()},
        cost=round(between.difference, 6),
        low=round(between.low, 6),
        high=round(between.high, 6),
        bytes_a_row={f: round(stores[f].nbytes / max(1, len(stores[f])), 1) for f in _FORMS},
        lookup_us=lookup_us([stores["float32"], stores["int8"]], ["float32", "int8"]),
    )


def _judged(dataset: Dataset, rows: Predictions) -> NDArray[np.bool_]:
    """The later half: of the days, or of a log of one day, of what was shown."""
    judged = judged_rows(dataset, rows)
    if judged.all():
        judged[: len(judged) // 2] = False
    return judged


def lookup_us(stores: Sequence[RowStore], names: Sequence[str]) -> dict[str, float]:
    """The median time of looking up what a request needs, each store in turn."""
    draw = np.random.default_rng(0)
    keys = stores[0].export()[0]
    taken: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(_LOOKUPS):
        some = draw.choice(keys, min(_REQUEST, len(keys)), replace=False)
        for name, store in zip(names, stores, strict=True):
            began = time.perf_counter()
            store.lookup(some)
            taken[name].append(time.perf_counter() - began)
    return {name: round(float(np.median(its)) * 1e6, 1) for name, its in taken.items()}


def accept(
    form: Annotated[str, typer.Argument(help="int8.")],
    data: Annotated[Path, typer.Argument(help="A folder: KuaiRand, or an event log.")],
    state: Annotated[
        Path | None, typer.Option(help="The state folder, instead of the configuration's.")
    ] = None,
    config: Annotated[str, typer.Option(help="laptop, cluster, or a YAML file.")] = "laptop",
    at_most: Annotated[float, typer.Option(help="What it may cost in AUC.")] = 0.001,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the decision here too.")
    ] = None,
) -> None:
    """Measures what rows in a smaller form cost, and accepts or refuses them for a state folder."""
    try:
        if form != "int8":
            raise ValueError(f"the form is {form!r}, expected int8: there is no other to accept")
        if not at_most >= 0:
            raise ValueError(f"--at-most is {at_most}, expected 0 or more")
        check_folders(json_file)
        base = load(config)
        options = ReplayOptions(base.model.features)
        evidence = measure(open_dataset(data), options, base, with_bar)
        decision = decide(form, evidence, at_most)
    except (DataError, ValueError) as error:
        typer.secho(f"recsys: {error}", fg="red", err=True)
        raise typer.Exit(2) from error
    for line in _lines(evidence):
        typer.echo(line)
    if json_file is not None:
        write_report(json_file, _plain(decision))
    if isinstance(decision, Refuse):
        typer.secho(f"recsys: refused: {decision.why}", fg="red", err=True)
        raise typer.Exit(1)
    file = write_accepted(state or base.state, decision)
    typer.echo(f"accepted, at most {at_most}: {file}")


def _plain(decision: Accept | Refuse) -> dict[str, Any]:
    import msgspec

    found: dict[str, Any] = msgspec.to_builtins(decision)
    return {"decision": type(decision).__name__.lower(), **found}


def _lines(evidence: RowFormEvidence) -> list[str]:
    its = evidence
    lines = [f"{its.data}: {its.rows:,} rows of {its.users:,} users"]
    for form in _FORMS:
        line = f"{form:>8}  AUC {its.auc[form]:.5f}  {its.bytes_a_row[form]:6.1f} bytes a row"
        if form in its.lookup_us:
            line += f"  {its.lookup_us[form]:6.1f} µs a lookup of {_REQUEST}"
        lines.append(line)
    return [*lines, f"cost {its.cost:+.6f} ({its.low:+.6f} to {its.high:+.6f})"]
