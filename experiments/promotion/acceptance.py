"""Decision whether a smaller row format is good enough for serving, with its evidence: it holds for the
features and the model settings of the evidence."""

from dataclasses import dataclass, replace

from recsys.config.system_config import ModelConfig, digest
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


@dataclass(frozen=True)
class Refuse:
    """Rows may not be served in this format, and why."""

    form: str
    at_most: float
    evidence: RowFormEvidence
    why: str


def decide(form: str, evidence: RowFormEvidence, at_most: float) -> Accept | Refuse:
    """Accepts if the whole interval of the cost is at most ``at_most`` and a row takes less memory."""
    smaller, full = evidence.bytes_a_row[form], evidence.bytes_a_row["float32"]
    if not evidence.high <= at_most:  # also NaN
        why = (
            f"the cost in AUC may be as high as {evidence.high:.5f} ({evidence.cost:+.5f} on "
            f"{evidence.users} users), expected at most {at_most}; measure on a longer log, or keep "
            "serve.rows at float32"
        )
        return Refuse(form, at_most, evidence, why)
    if smaller >= full:
        why = f"a row takes {smaller:.0f} bytes, expected less than {full:.0f}: it gains nothing"
        return Refuse(form, at_most, evidence, why)
    return Accept(form, at_most, evidence)


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
