"""`recsys study compression`: AUC, bytes and time of factored and pruned rankers, beside int8 rows."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final

import numpy as np
import torch
import typer
from torch import nn

from benchmarks.harness.commands import check_at_least, study_command
from benchmarks.studies.promotion.compressed_models import (
    DenseForm,
    LowRankRows,
    PrunedRows,
    dense_low_rank,
    dense_pruned,
    first_layer_by,
    low_rank,
    pruned,
    with_rows,
)
from benchmarks.studies.promotion.student_arms import Arms, Arrays, as_int8, rank_us, requests_of
from benchmarks.studies.promotion.study_student import examples_of
from benchmarks.studies.quality.simulated_world_log import WorldLog
from benchmarks.studies.quality.study_figures import JudgedRows, draw_aucs, pair_of
from parameter_server.publish.rounding import row_bytes
from recsys.config.system_config import Config, ModelConfig, tables_of
from recsys.features.feature_set import FeatureSet
from recsys.model.model import Model, build_model
from recsys.model.ranker import Ranker
from replay.datasets.open_dataset import open_dataset
from replay.replay_report import with_bar
from serving.replica.row_store import RowStore
from training.offline.examples import Examples
from training.offline.loop import Plan

FULL, INT8 = "float32", "int8 rows"
_RANKS_DENSE, _RANKS_ROWS, _SHARES = (16, 32, 64), (4, 8, 12), (0.5, 0.8)
_SAMPLES: Final = 300
_ROUNDS: Final = 5  # timings of each form, in turns: others use the machine, too


@dataclass(frozen=True)
class Form:
    """A trained model in one form. ``arrays``: as written out in full; ``rows``: its store of the ranker's
    table; ``dense``: its first layer, if that differs; ``saved``: bytes that its published rows save."""

    arrays: Arrays
    rows: Any
    dense: DenseForm | None = None
    saved: int = 0


def forms_of(model: ModelConfig, network: Model, arrays: Arrays) -> dict[str, Form]:
    """All forms of a trained model. Leaves ``network`` with another form's weights."""
    table = next(t for t in tables_of(model) if t.name == "features")
    keys, values = arrays["table/features/keys"], arrays["table/features/values"]
    full, rounded = RowStore.filled(table, model.seed, keys, values), as_int8(arrays)
    int8 = RowStore.filled(table, model.seed, keys, rounded["table/features/values"])
    saved = len(keys) * (row_bytes(table.dim, "fp32") - row_bytes(table.dim, "int8"))
    forms = {FULL: Form(arrays, full), INT8: Form(rounded, int8, saved=saved)}
    network.write_dense(arrays["dense/averaged"])
    assert isinstance(network.ranker, Ranker)
    first = network.ranker.layers[0]
    assert isinstance(first, nn.Linear)
    weight = first.weight.detach().numpy().copy()
    dense = {f"first layer, rank {r}": dense_low_rank(weight, r) for r in _RANKS_DENSE}
    dense |= {f"first layer, {s:.0%} pruned": dense_pruned(weight, s) for s in _SHARES}
    for name, form in dense.items():
        with torch.no_grad():
            first.weight.copy_(torch.from_numpy(form.weight))
        forms[name] = Form({**arrays, "dense/averaged": network.read_dense()}, full, form)
    for rank in _RANKS_ROWS:
        changed = with_rows(arrays, lambda v, r=rank: np.matmul(*low_rank(v, r)))  # type: ignore[misc]
        store = LowRankRows(table, model.seed, keys, values, rank)
        forms[f"rows, rank {rank}"] = Form(changed, store)
    for share in _SHARES:
        changed = with_rows(arrays, lambda v, s=share: pruned(v, s))  # type: ignore[misc]
        forms[f"rows, {share:.0%} pruned"] = Form(changed, PrunedRows(keys, values, share))
    return forms


def bytes_of(form: Form, network: Model) -> tuple[int, int]:
    """Bytes of the ranker's rows, and of the dense parameters."""
    dense = 4 * network.dense_size()
    if form.dense is not None:
        dense += form.dense.nbytes - 4 * form.dense.weight.size
    return form.rows.nbytes - form.saved, dense


def times_of(
    forms: Mapping[str, Form], network: Callable[[], Model], features: FeatureSet, judged: Examples
) -> dict[str, float]:
    """Least median microseconds of processor time over some rounds, to rank 300 candidates."""
    requests, taken = requests_of(features, judged, 40), {name: list[float]() for name in forms}
    for _ in range(_ROUNDS):
        for name, form in forms.items():
            model = network()
            model.write_dense(form.arrays["dense/averaged"])
            by = nullcontext() if form.dense is None else first_layer_by(model, form.dense)
            with by:
                taken[name].append(rank_us(model, {"features": form.rows}, requests))
    return {name: min(values) for name, values in taken.items()}


def measure(features: FeatureSet, every: Examples, first: int, plan: Plan, seed: int) -> Any:
    """One seed: drawn AUCs, bytes and times of all forms."""
    system = replace(ModelConfig(), features=features.kind, seed=seed)
    arms = Arms(features, system, every, first, plan, Config().step.lanes)
    arrays, judged = arms.train(system), every.take(slice(first, None))
    network = build_model(features, system)
    forms = forms_of(system, network, arrays)
    scores = np.array([arms.frozen(system, form.arrays) for form in forms.values()])
    users = judged.user_keys.view(np.int64)[:, features.slot("user").start].astype(str)
    labels = (judged.labels[:, 0] > 0.5).astype(np.int64)
    return {
        "names": list(forms), "rows": len(judged), "learned": first,
        "table_rows": len(forms[FULL].rows),
        "drawn": draw_aucs(JudgedRows(scores, labels, users), _SAMPLES, seed),
        "bytes": {name: bytes_of(form, network) for name, form in forms.items()},
        "us": times_of(forms, lambda: build_model(features, system), features, judged),
    }  # fmt: skip


@study_command
def compression(
    data: Annotated[str, typer.Argument(help="A folder, as for replay; or world.")] = "world",
    seeds: Annotated[int, typer.Option(help="Runs with other initial values (and worlds).")] = 3,
    hours: Annotated[float, typer.Option(help="Duration of the world's log.")] = 48.0,
    epochs: Annotated[int, typer.Option(help="Maximum number of epochs.")] = 2,
    step_examples: Annotated[int, typer.Option(help="Examples of a step.")] = 64,
) -> dict[str, Any]:
    """Factored and pruned rankers beside int8 rows: AUC, bytes, time to rank."""
    check_at_least(1, seeds=seeds, epochs=epochs, step_examples=step_examples)
    torch.set_num_threads(1)
    plan = Plan(last=1, epochs=epochs, step_examples=step_examples)
    runs = []
    for seed in range(seeds):
        dataset: Any = WorldLog(seed, hours) if data == "world" else open_dataset(data)
        runs.append(measure(*examples_of(dataset, with_bar), plan, seed))
    figures = figures_of(runs)
    for row in figures["forms"]:
        typer.echo(
            f"{row['form']:>24}  AUC {row['auc']:.5f} ({row['difference']:+.5f}, {row['low']:+.5f} to "
            f"{row['high']:+.5f})  {row['row_bytes']:.1f} bytes a row, dense {row['dense_kib']} KiB, "
            f"{row['us']:.0f} µs"
        )
    return {"data": data, "hours": hours, "seeds": seeds, **figures}


def figures_of(runs: list[Any]) -> dict[str, Any]:
    """Means over the seeds, and each form's difference from float32."""
    names = runs[0]["names"]
    points_RK = np.array([run["drawn"][0] for run in runs])
    drawn_SK = np.mean([run["drawn"][1] for run in runs], axis=0)
    mean_K, rows = points_RK.mean(0), []
    for k, name in enumerate(names):
        pair = pair_of(FULL, name, mean_K[k] - mean_K[0], drawn_SK[:, k] - drawn_SK[:, 0])
        rows.append({
            "form": name, "auc": round(float(mean_K[k]), 5), **pair,
            "row_bytes": round(float(np.mean([r["bytes"][name][0] / r["table_rows"] for r in runs])), 1),
            "dense_kib": round(float(np.mean([r["bytes"][name][1] for r in runs])) / 1024),
            "us": round(float(np.median([r["us"][name] for r in runs]))),
        })  # fmt: skip
    counts = {name: runs[0][name] for name in ("rows", "learned", "table_rows")}
    return {"forms": rows, **counts}
