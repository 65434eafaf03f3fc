"""What was accepted for a state folder, and that nothing else is served: ``accepted/int8.json`` there."""

from pathlib import Path

import msgspec

from experiments.acceptance import Accept, misfit
from recsys.config import Config
from recsys.features import FeatureSet
from recsys.loops import write_atomically
from recsys.settings import BadSettings


def file_of(state: str | Path, form: str) -> Path:
    return Path(state) / "accepted" / f"{form}.json"


def write_accepted(state: str | Path, accepted: Accept) -> Path:
    """Writes it down; what stood there is replaced whole."""
    file = file_of(state, accepted.form)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, msgspec.json.format(msgspec.json.encode(accepted)) + b"\n")
    return file


def check_accepted(config: Config, features: FeatureSet) -> None:
    """Raises BadSettings where rows are to be served in a form that wasn't accepted for this folder."""
    form = config.serve.rows
    if form == "float32":
        return
    file = file_of(config.state, form)
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
