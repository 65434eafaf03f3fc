"""Stores which row format was accepted for serving, in ``STATE/accepted/int8.json``, and enforces it.

A system may run a second model of another size (experiments/promotion/epoch_model.py). Its acceptance is in
``int8-MODEL.json``, by the digest of the model's configuration.
"""

from contextlib import suppress
from pathlib import Path

import msgspec

from experiments.promotion.acceptance import Accept, mismatch
from recsys.config.loader import ConfigError
from recsys.config.system_config import Config, digest
from recsys.features.feature_set import FeatureSet
from recsys.process.part_process import write_atomically


def file_of(state: str | Path, form: str, model: str = "") -> Path:
    """Path of an acceptance. ``model``: the digest of a model other than the first accepted one."""
    return Path(state) / "accepted" / (f"{form}-{model}.json" if model else f"{form}.json")


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
