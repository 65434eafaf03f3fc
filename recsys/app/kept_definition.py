"""The definition that a state folder keeps, and the configuration with it."""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from recsys.app.app_file import APP_FILE, read_app
from recsys.app.definition import App, EventKind, Field
from recsys.config.loader import load
from recsys.config.system_config import Config
from recsys.events.field_schema import NUMERIC
from recsys.features.feature_set_file import FILE as FEATURES_FILE
from recsys.features.feature_set_file import feature_set, write_feature_set
from recsys.process.part_process import write_atomically


def with_definition(
    config: str, state: Path | None, file: Path | None
) -> tuple[Config, App | None, Path | None]:
    """A configuration with the definition in ``file``, by default the state folder's, if there is one."""
    stored = (state or Path(load(config).state)) / APP_FILE
    file = stored if file is None and stored.exists() else file
    app = None if file is None else read_app(file)
    # The file comes before the definition, as in a replay.
    settings = load(config) if app is None else load(config, app.config)
    folder = str(Path(settings.state if state is None else state).resolve())
    return replace(settings, state=folder), app, file


def kept_app(config: Config) -> App:
    """The definition that a state folder keeps; without one the kinds and item fields of its feature set, as
    for the demo's log. Read anew after each change of the file."""
    file = Path(config.state) / APP_FILE
    if file.exists():
        return _read(file, file.stat().st_mtime_ns)
    schema, weights = feature_set(config).schema, config.policy.weights
    labels = {kind: "negative" if weights.get(kind, 0) < 0 else "positive" for kind in schema.labels}
    fields = {name: Field("number" if kind == NUMERIC else "category") for name, kind in schema.item}
    return App(
        events={
            kind: EventKind(labels.get(kind, "")) for kind in dict.fromkeys((*schema.labels, *schema.kinds))
        },
        fields={"item": fields},
        groups=schema.groups,
    )


@lru_cache(maxsize=1)
def _read(file: Path, changed_ns: int) -> App:
    return read_app(file)


def keep_definition(config: Config, app: App | None, file: Path | None) -> None:
    """Writes the feature set and the definition of a state folder. The definition that is kept there may have
    another set than the first: the system took it up (``recsys app apply``). Raises ValueError for others."""
    if app is not None and file is not None and not is_kept(config, file):
        features, own_file = app.feature_set(config.model.features), Path(config.state) / APP_FILE
        first = feature_set(config) if (own_file.parent / FEATURES_FILE).exists() else features
        if own_file.exists() and read_app(own_file).feature_set(first.kind) != features:
            raise ValueError(
                f"{file} has other features than {own_file}: run `recsys app apply {file}` while the "
                "system runs, or use another state folder (--state)"
            )
        if first == features or not own_file.exists():
            write_feature_set(config, features)
        write_atomically(own_file, file.read_bytes(), sync=True)


def is_kept(config: Config, file: Path) -> bool:
    """Whether a state folder keeps the definition in a file."""
    stored, features = Path(config.state) / APP_FILE, Path(config.state) / FEATURES_FILE
    return stored.exists() and features.exists() and stored.read_bytes() == file.read_bytes()
