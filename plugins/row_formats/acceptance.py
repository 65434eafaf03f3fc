"""Decides whether a smaller row format is good enough for serving, and writes it to a state folder."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from recsys.process.part_process import write_atomically
from runtime.supervision.acceptance_file import Accept, RowFormEvidence, file_of


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


def write_accepted(state: str | Path, accepted: Accept) -> Path:
    """Writes an acceptance, replacing an earlier one of the same model; returns the file."""
    file = file_of(state, accepted.form)
    with suppress(OSError, msgspec.MsgspecError):
        before = msgspec.json.decode(file.read_bytes(), type=Accept)
        if before.evidence.model != accepted.evidence.model:
            file = file_of(state, accepted.form, accepted.evidence.model)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, msgspec.json.format(msgspec.json.encode(accepted)) + b"\n")
    older = file_of(state, accepted.form, accepted.evidence.model)
    if older != file:
        older.unlink(missing_ok=True)  # otherwise it would take precedence over this one
    return file
