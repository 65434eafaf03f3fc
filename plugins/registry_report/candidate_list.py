"""Candidates of a registry as plain values: a list, one candidate, and the difference of two."""

from pathlib import Path
from typing import Any

import msgspec

from plugins.registry_report.candidate_diff import Diff, arrays_of, dense_of, rows_of
from plugins.registry_report.candidate_diff import diff as diff_snapshots
from training.candidates.registry import Refused, Registry, describe_model, describe_teacher, iso


def list_candidates(folder: Path) -> list[dict[str, Any]]:
    """One row per candidate, by creation time. Unreadable ones have the reason in ``refused``."""
    registry = Registry(folder)
    rows: list[tuple[int, dict[str, Any]]] = []
    for name in registry.names():
        try:
            provenance = registry.provenance(name)
        except Refused as error:
            rows.append((0, {"name": name, "refused": str(error)}))
            continue
        row: dict[str, Any] = {
            "name": name,
            "kind": provenance.kind,
            "model": describe_model(provenance),
            "learned": f"{iso(provenance.from_ms)} to {iso(provenance.until_ms)}",
            "examples": provenance.examples,
            "epochs": provenance.epochs,
            "parents": ", ".join(parent.line for parent in provenance.parents)
            or (provenance.ancestor.line if provenance.ancestor else ""),
        }
        if provenance.teacher is not None:
            row["teacher"] = describe_teacher(provenance.teacher)
        for metric in ("auc", "log_loss"):
            if (value := provenance.metrics.get(f"last_day.{metric}")) is not None:
                row[metric] = round(value, 4)
        rows.append((provenance.made_ms, row))
    return [row for _, row in sorted(rows, key=lambda pair: (pair[0], pair[1]["name"]))]


def describe_candidate(folder: Path, name: str) -> dict[str, Any]:
    """The provenance, and the snapshot's step, tables and number of dense parameters."""
    registry = Registry(folder)
    snapshot = registry.snapshot(name)
    arrays = arrays_of(snapshot)
    dense = dense_of(arrays)
    values: dict[str, Any] = msgspec.to_builtins(registry.provenance(name), str_keys=True)
    values["steps"] = snapshot.step
    values["dense"] = 0 if dense is None else len(dense)
    values["tables"] = {
        table: {"rows": len(keys), "dim": rows_ND.shape[1]}
        for table, (keys, rows_ND) in rows_of(arrays).items()
    }
    return values


def diff_candidates(folder: Path, a: str, b: str) -> Diff:
    """Compares provenance and arrays of two candidates."""
    registry = Registry(folder)
    first, second = registry.snapshot(a), registry.snapshot(b)
    arrays = arrays_of(first), arrays_of(second)
    return diff_snapshots(registry.provenance(a), registry.provenance(b), *arrays)
