"""What was accepted for a state folder, and that nothing else is served: ``accepted/int8.json`` there.

A system may have a model of another size beside its own (experiments/promotion/epoch_model.py): what was accepted for
that stands in a second file, ``int8-MODEL.json``, by the digest of the model's configuration.
"""

from contextlib import suppress
from pathlib import Path

import msgspec

from experiments.promotion.acceptance import Accept, misfit
from recsys.config.loader import BadSettings
from recsys.config.system_config import Config, digest
from recsys.features.feature_set import FeatureSet
from recsys.process.part_process import write_atomically


def file_of(state: str | Path, form: str, model: str = "") -> Path:
    """``model``: the digest of another model than the one that was accepted first."""
    return Path(state) / "accepted" / (f"{form}-{model}.json" if model else f"{form}.json")


def write_accepted(state: str | Path, accepted: Accept) -> Path:
    """Writes it down; what stood there of the same model is replaced whole."""
    file = file_of(state, accepted.form)
    with suppress(OSError, msgspec.MsgspecError):
        before = msgspec.json.decode(file.read_bytes(), type=Accept)
        if before.evidence.model != accepted.evidence.model:
            file = file_of(state, accepted.form, accepted.evidence.model)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, msgspec.json.format(msgspec.json.encode(accepted)) + b"\n")
    older = file_of(state, accepted.form, accepted.evidence.model)
    if older != file:
        older.unlink(missing_ok=True)  # of the same model: it would be believed before this one
    return file


def check_accepted(config: Config, features: FeatureSet) -> None:
    """Raises BadSettings where rows are to be served in a form that wasn't accepted for this folder."""
    form = config.serve.rows
    if form == "float32":
        return
    its = file_of(config.state, form, digest(config.model))
    file = its if its.exists() else file_of(config.state, form)
    remedy = (
        f"run `recsys accept {form} DATA --state {config.state}` with this configuration, or set "
        "serve.rows to float32"
    )
    try:
        accepted = msgspec.json.decode(file.read_bytes(), type=Accept)
    except FileNotFoundError:
        raise BadSettings(
            f"serve.rows is {form!r}, but nothing says what that costs here: there is no {file}; {remedy}"
        ) from None
    except msgspec.MsgspecError as error:
        raise BadSettings(f"{file} can't be read ({error}); {remedy}") from None
    if why := misfit(accepted, features, config.model):
        raise BadSettings(
            f"serve.rows is {form!r}, but {file} is of something else: {why}; {remedy}"
        )
