"""Row formats that were accepted for serving, in ``STATE/accepted/int8.json``: each with its evidence, which
holds for the features and the model settings of that time.

A system may run a second model of another size (experiments/promotion/epoch_model.py). Its acceptance is in
``int8-MODEL.json``, by the digest of the model's configuration.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from recsys.config.loader import ConfigError
from recsys.config.system_config import Config, ModelConfig, digest
from recsys.features.feature_set import FeatureSet


@dataclass(frozen=True)
class RowFormEvidence:
    """One replay scored with full rows (``float32``) and with smaller ones side by side. ``cost``: AUC of
    float32 minus that of the smaller format; ``low``, ``high``: its 95 % interval by a bootstrap over
    users."""

    features: str
    model: str
    data: str
    rows: int
    users: int
    auc: dict[str, float]  # by format
    cost: float
    low: float
    high: float
    bytes_a_row: dict[str, float]  # of the ranker's table with its map, by format
    lookup_us: dict[str, float]  # of the rows of a request, by format


@dataclass(frozen=True)
class Accept:
    """Rows may be served in this format with the features and model of the evidence."""

    form: str
    at_most: float
    evidence: RowFormEvidence


def file_of(state: str | Path, form: str, model: str = "") -> Path:
    """Path of an acceptance. ``model``: the digest of a model other than the first accepted one."""
    return Path(state) / "accepted" / (f"{form}-{model}.json" if model else f"{form}.json")


def check_accepted(config: Config, features: FeatureSet) -> None:
    """Raises ConfigError where ``serve.rows`` is a format that wasn't accepted for this state folder."""
    form = config.serve.rows
    if form == "float32":
        return
    file = file_of(config.state, form, digest(config.model))
    file = file if file.exists() else file_of(config.state, form)
    remedy = (
        f"run `recsys accept {form} DATA --state {config.state}` with this configuration, or set "
        "serve.rows to float32"
    )
    try:
        accepted = msgspec.json.decode(file.read_bytes(), type=Accept)
    except FileNotFoundError:
        raise ConfigError(
            f"serve.rows is {form!r}, but its cost was never measured here: there is no {file}; {remedy}"
        ) from None
    except msgspec.MsgspecError as error:
        raise ConfigError(f"{file} can't be read ({error}); {remedy}") from None
    if why := mismatch(accepted, features, config.model):
        raise ConfigError(
            f"serve.rows is {form!r}, but {file} doesn't match this system: {why}; {remedy}"
        )


def input_digest(features: FeatureSet) -> str:
    """Digest of a model's inputs. Excludes ``shown_by``, which only selects the training examples: an old log
    records it, and the feed's client sends it."""
    return replace(features, schema=replace(features.schema, shown_by="view")).digest


def mismatch(accepted: Accept, features: FeatureSet, model: ModelConfig) -> str | None:
    """Difference of the evidence's features or model from these; None if equal."""
    evidence = accepted.evidence
    for name, before, now in (
        ("the feature set", evidence.features, input_digest(features)),
        ("the model's configuration", evidence.model, digest(model)),
    ):
        if before != now:
            return f"{name} was {before} then and is {now}"
    return None
