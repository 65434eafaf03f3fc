"""Whether a smaller form of the rows is good enough to be served from: a decision and what it rests on. Pure.

What was accepted holds for what was measured: the features that the model reads, and the model's settings.
"""

from dataclasses import dataclass, replace

from recsys.config.system_config import ModelConfig, digest
from recsys.features.feature_set import FeatureSet


@dataclass(frozen=True)
class RowFormEvidence:
    """One replay, scored with rows as they are learned (``float32``) and with the smaller ones, side by side.

    ``cost``: AUC of float32 minus that of the smaller form, on the same rows; ``low`` and ``high``: its 95 %
    interval, from drawing users anew.
    """

    features: str
    model: str
    data: str
    rows: int
    users: int
    auc: dict[str, float]  # by form
    cost: float
    low: float
    high: float
    bytes_a_row: dict[str, float]  # of the ranker's table, map included, by form
    lookup_us: dict[str, float]  # of as many rows as a request needs, by form


@dataclass(frozen=True)
class Accept:
    """Rows may be served in this form by whoever has the features and the model of the evidence."""

    form: str
    at_most: float
    evidence: RowFormEvidence


@dataclass(frozen=True)
class Refuse:
    """They may not, and why."""

    form: str
    at_most: float
    evidence: RowFormEvidence
    why: str


def decide(form: str, evidence: RowFormEvidence, at_most: float) -> Accept | Refuse:
    """Accepts where the cost is known to be at most ``at_most``: the whole interval is, not its middle alone.
    A log too short to tell is refused, and so is a form that takes no less memory."""
    smaller, whole = evidence.bytes_a_row[form], evidence.bytes_a_row["float32"]
    if not evidence.high <= at_most:  # NaN isn't
        why = (
            f"the cost in AUC may be as high as {evidence.high:.5f} ({evidence.cost:+.5f} on "
            f"{evidence.users} users), expected at most {at_most}; measure on a longer log, or keep "
            "serve.rows at float32"
        )
        return Refuse(form, at_most, evidence, why)
    if smaller >= whole:
        why = f"a row takes {smaller:.0f} bytes, expected less than {whole:.0f}: it gains nothing"
        return Refuse(form, at_most, evidence, why)
    return Accept(form, at_most, evidence)


def input_digest(features: FeatureSet) -> str:
    """The digest of what a model reads. What counts as shown decides what is learned from, not that: a log of
    the past says it of itself, and the feed's client tells."""
    return replace(features, schema=replace(features.schema, shown_by="view")).digest


def mismatch(accepted: Accept, features: FeatureSet, model: ModelConfig) -> str | None:
    """In what the evidence isn't of these features and this model; None where it is."""
    for name, found, expected in (
        ("the feature set", accepted.evidence.features, input_digest(features)),
        ("the model's configuration", accepted.evidence.model, digest(model)),
    ):
        if found != expected:
            return f"{name} was {found} then and is {expected}"
    return None
