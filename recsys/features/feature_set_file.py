"""The feature set file of a state folder, which every process of a system reads. A folder with the log of one
feature set refuses another, including one written by a version with other columns."""

from pathlib import Path
from typing import Final

import msgspec

from recsys.config.system_config import Config
from recsys.events.field_schema import CATEGORICAL, NUMERIC, Schema
from recsys.features.feature_set import FeatureSet
from recsys.process.part_process import owned_folder, write_atomically

FILE: Final = "feature_set.json"

# Fields of the simulated world and of the feed's own items.
FEED_SCHEMA: Final = Schema(
    item=(("author", CATEGORICAL), ("duration_ms", NUMERIC), ("tags", CATEGORICAL), ("topic", CATEGORICAL)),
    user=(("age_band", CATEGORICAL), ("country", CATEGORICAL)),
    context=(("surface", CATEGORICAL),),
    groups=("author", "tags"),
)


class _Digest(msgspec.Struct):
    digest: str = ""


def feature_set(config: Config) -> FeatureSet:
    """The feature set of a state folder, by default the feed's. Raises ValueError if its columns have changed
    since it was written."""
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
            f"{path} has digest {digest or '(none)'}, expected {features.digest}: a version whose models "
            "read other columns wrote it and the log beside it. Begin a new state folder, warmed up with the "
            "log, or fill the archive anew (`recsys backfill --features`)"
        )
    return features


def write_feature_set(config: Config, features: FeatureSet) -> None:
    """Writes the feature set of a state folder; raises ValueError if the folder has another."""
    path = Path(config.state) / FILE
    if path.exists():
        written = feature_set(config)
        if written.digest != features.digest:
            raise ValueError(
                f"{path} holds feature set {written.digest}, expected {features.digest}: its log was made "
                "with other features; use another state folder (--state)"
            )
        if written.as_dict() == features.as_dict():
            return
    owned_folder(path.parent)
    write_atomically(path, encode_feature_set(features), sync=True)


def encode_feature_set(features: FeatureSet) -> bytes:
    """The file's content: the fields, and the digest of the columns that they mean today."""
    fields = features.as_dict() | {"digest": features.digest}
    return msgspec.json.format(msgspec.json.encode(fields))


def labels_of(config: Config) -> tuple[str, ...]:
    """The labels of the state folder's feature set."""
    return feature_set(config).schema.labels
