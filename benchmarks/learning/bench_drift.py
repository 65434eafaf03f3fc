"""``recsys bench drift``: planted shifts and stationary streams through the drift monitors, to measure
detection delay and false alarms. Each run is seeded; the streams come from ``drift_stream``."""

import time
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from benchmarks.harness.commands import Log, no_log
from benchmarks.learning.drift_stream import COLUMNS, LABELS, SLOTS, Shift, Stream, make_stream
from recsys.events.control_records import Alarm
from training.drift.monitors import DetectorConfig, FeatureMonitor, LossMonitor

WITHIN: Final = 2_000  # examples
_STEP: Final = 256
_BEFORE: Final = 40_000  # examples before a shift
_A_DAY: Final = (20_000, 200_000, 2_000_000)  # examples: a laptop, a busy one, a cluster
SHIFTS: Final = {
    "taste, a third": Shift("taste", 0.35),
    "taste, half": Shift("taste", 0.5),
    "taste, all": Shift("taste", 1.0),
    "taste, all, over 1,000": Shift("taste", 1.0, 1_000),
    "taste, all, over 2,000": Shift("taste", 1.0, 2_000),
    "labels, odds × 1.65": Shift("rate", 0.5),
    "labels, odds ÷ 1.65": Shift("rate", -0.5),
    "feature, 0.3 sd": Shift("feature", 0.3),
    "feature, 0.5 sd": Shift("feature", 0.5),
    "feature, 0.5 sd, over 1,000": Shift("feature", 0.5, 1_000),
    "feature of a viewer, 0.7 sd": Shift("viewer_feature", 0.7),
    "share, 0.1 to 0.2": Shift("share", 0.2),
    "share, 0.1 to 0.25": Shift("share", 0.25),
}
_TELLS: Final = {
    "taste": ("loss", "calibration"),
    "rate": ("loss", "calibration"),
    "feature": ("feature",),
    "viewer_feature": ("feature",),
    "share": ("share",),
}


def measure_drift(runs: int, stationary: int, seed: int, log_progress: Log = no_log) -> dict[str, Any]:
    """``runs`` of each shift, and ``stationary`` runs of 500,000 examples for each length of a day."""
    began = time.monotonic()
    shifts = {}
    for number, (name, shift) in enumerate(SHIFTS.items()):
        shifts[name] = _shifted(shift, runs, seed + 1_000 * number)
        log_progress(f"{name}: {shifts[name]}")
    calm = {}
    for a_day in _A_DAY:
        calm[f"{a_day} a day"] = _stationary(a_day, stationary, seed + 500_000)
        log_progress(f"stationary, {a_day} a day: {calm[f'{a_day} a day']}")
    total = sum(figures["examples"] for figures in calm.values())
    alarms = sum(figures["alarms"] for figures in calm.values())
    return {
        "config": vars(DetectorConfig()),
        "within": WITHIN,
        "shifts": shifts,
        "stationary": calm,
        "false_alarms_per_100000": round(100_000 * alarms / max(1, total), 3),
        "seconds": round(time.monotonic() - began, 1),
    }


def _shifted(shift: Shift, runs: int, seed: int) -> dict[str, Any]:
    delays, early, worse = [], 0, []
    for run in range(runs):
        stream = make_stream(seed + run, _BEFORE + 3 * WITHIN + shift.ramp, _A_DAY[run % 3], shift, _BEFORE)
        alarms = watch(stream)
        early += sum(at <= _BEFORE for at, _ in alarms)
        late = [at for at, alarm in alarms if at > _BEFORE and alarm.kind in _TELLS[shift.kind]]
        delays.append(late[0] - _BEFORE if late else np.inf)
        after = stream.losses_NK[_BEFORE + shift.ramp :, 0].mean()
        worse.append(after - stream.losses_NK[:_BEFORE, 0].mean())
    sound = np.sort(delays)
    return {
        "runs": runs,
        "loss_shift": round(float(np.mean(worse)), 4),
        "found_within": round(float(np.mean(sound <= WITHIN)), 3),
        "found": round(float(np.mean(np.isfinite(sound))), 3),
        "delay_median": _number(sound, 0.5),
        "delay_p90": _number(sound, 0.9),
        "delay_max": _number(sound, 1.0),
        "alarms_before": early,
    }


def _number(sound: Any, quantile: float) -> float | None:
    value = float(sound[min(len(sound) - 1, int(quantile * len(sound)))])
    return value if np.isfinite(value) else None


def _stationary(a_day: int, runs: int, seed: int) -> dict[str, Any]:
    examples, kinds = 500_000, dict[str, int]()
    for run in range(runs):
        for _, alarm in watch(make_stream(seed + run, examples, a_day, Shift(""), examples)):
            kinds[f"{alarm.kind} {alarm.what}"] = kinds.get(f"{alarm.kind} {alarm.what}", 0) + 1
    return {"examples": runs * examples, "alarms": sum(kinds.values()), "by_number": kinds}


def watch(stream: Stream, config: DetectorConfig | None = None) -> list[tuple[int, Alarm]]:
    """All alarms of a stream in steps of 256, each with the number of examples so far."""
    losses = LossMonitor(LABELS, config)
    features = FeatureMonitor(COLUMNS, SLOTS, config or DetectorConfig())
    alarms: list[tuple[int, Alarm]] = []
    for step, start in enumerate(range(0, len(stream.losses_NK), _STEP), 1):
        rows = slice(start, start + _STEP)
        stop, at_ms = min(start + _STEP, len(stream.losses_NK)), int(stream.times_ms[start])
        step_alarms: Sequence[Alarm] = losses.step(_metrics(stream, rows), at_ms, step)
        keys = {slot: column[rows] for slot, column in stream.keys.items()}
        step_alarms = [*step_alarms, *features.step(stream.dense_NF[rows], keys, at_ms, step)]
        alarms += [(stop, alarm) for alarm in step_alarms]
    return alarms


def _metrics(stream: Stream, rows: slice) -> dict[str, float]:
    metrics = {"examples": float(len(stream.losses_NK[rows]))}
    for k, label in enumerate(LABELS):
        metrics[f"loss.{label}"] = float(stream.losses_NK[rows, k].sum())
        metrics[f"predicted.{label}"] = float(stream.predicted_NK[rows, k].sum())
        metrics[f"happened.{label}"] = float(stream.happened_NK[rows, k].sum())
    return metrics
