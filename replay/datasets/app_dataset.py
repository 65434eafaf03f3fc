"""A data set as an app's definition reads it: the definition's labels, fields, window and features count."""

from typing import Any

from recsys.app.definition import App
from recsys.config.system_config import Config
from recsys.events.field_schema import Schema
from recsys.features.feature_set import FeatureSet
from replay.datasets.dataset import Dataset


class OfApp:
    """Part of a data set (see ``Dataset``) that the definition of its app gives."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.window_s = app.window_s

    @property
    def labels(self) -> list[str]:
        return list(self.app.labels)

    @property
    def schema(self) -> Schema:
        return self.app.schema


class AppDataset(OfApp):
    """Wraps a data set that has no definition of its own."""

    def __init__(self, app: App, dataset: Dataset) -> None:
        super().__init__(app)
        self._dataset = dataset

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # of an instance that isn't made yet, as copies are
            raise AttributeError(name)
        return getattr(self._dataset, name)


def feature_set_of(dataset: Dataset, config: Config) -> FeatureSet:
    """The features that a data set is replayed with: those of its app, or of its schema."""
    if isinstance(dataset, OfApp):
        return dataset.app.feature_set(config.model.features)
    return FeatureSet(dataset.schema, config.model.features, config.sessions.history)
