"""The feature set of a state folder: every process of a system reads it here, and needs no model for it.

It is decided once, when a state folder is first used, and written there: a folder that holds a log of one
feature set refuses another, and so one that was written by a version with other columns.
"""

from pathlib import Path
from typing import Final

import msgspec

from recsys.config.system_config import Config
from recsys.events.field_schema import CATEGORICAL, NUMERIC, Schema
from recsys.features.feature_set import FeatureSet
from recsys.process.part_process import write_atomically

FILE: Final = "feature_set.json"

# What the simulated world and the feed's own items have.
FEED_SCHEMA: Final = Schema(
    item=(
        ("author", CATEGORICAL),
        ("duration_ms", NUMERIC),
        ("tags", CATEGORICAL),
        ("topic", CATEGORICAL),
    ),
    user=(("age_band", CATEGORICAL), ("country", CATEGORICAL)),
    context=(("surface", CATEGORICAL),),
    groups=("author", "tags"),
)


class _Digest(msgspec.Struct):
    digest: str = ""


def feature_set(config: Config) -> FeatureSet:
    """The feature set of a state folder; that of the feed where none was decided yet. Raises ValueError
    where its columns were others when it was decided."""
    path = Path(config.state) / FILE
    if not path.exists():
        return FeatureSet(FEED_SCHEMA, config.model.features, config.sessions.history)
    written = path.read_bytes()
    try:
        features = msgspec.json.decode(written, type=FeatureSet)
        digest = msgspec.json.decode(written, type=_Digest).digest
    except msgspec.MsgspecError as error:
        raise ValueError(
            f"{path} isn't a feature set ({error}): begin a new state folder, or put there the file of one "
            "with the same features"
        ) from error
    if digest != features.digest:
        raise ValueError(
            f"{path} has digest {digest or '(none)'}, expected {features.digest}: a version wrote it whose "
            "models read other columns, and so is the log beside it. Begin a new state folder, warmed up "
            "with the log, or fill the archive anew (`recsys backfill --features`)"
        )
    return features


def decide(config: Config, features: FeatureSet) -> None:
    """Writes the feature set of a state folder; raises ValueError where another was decided before."""
    path = Path(config.state) / FILE
    if path.exists():
        stands = feature_set(config).digest
        if stands != features.digest:
            raise ValueError(
                f"{path} holds feature set {stands}, expected {features.digest}: its log was made with other "
                "features; use another state folder (--state)"
            )
        return  # parts may be reading it
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, as_file(features))


def as_file(features: FeatureSet) -> bytes:
    """As it stands in a folder: its fields, and the digest of the columns that they mean today."""
    fields = msgspec.to_builtins(features) | {"digest": features.digest}
    return msgspec.json.format(msgspec.json.encode(fields))


def labels_of(config: Config) -> tuple[str, ...]:
    """The labels of the state folder's feature set."""
    return feature_set(config).schema.labels
