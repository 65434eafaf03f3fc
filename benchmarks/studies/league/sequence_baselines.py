"""RecBole's SASRec and GRU4Rec as lists that retrieval is compared with, trained anew as the log goes on.

RecBole isn't a dependency. Its models are used, with their published settings, in a loop of ours: its own
trainer knows neither judged engagements in the order of time nor a log that goes on. A model learns all
positions of a sequence at once, as in SASRec's paper; RecBole makes an example of each instead.
"""

from collections import defaultdict
from collections.abc import Iterator
from importlib import import_module
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
import torch
import yaml
from torch import Tensor
from torch.nn import functional as F

from replay.judging.bounded_state import Floats, Indices

SEQUENCE_MODELS: Final = ("SASRec", "GRU4Rec")
_FIELDS: Final = {
    "USER_ID_FIELD": "user",
    "ITEM_ID_FIELD": "item",
    "LIST_SUFFIX": "s",
    "ITEM_LIST_LENGTH_FIELD": "length",
    "NEG_PREFIX": "no_",
    "device": "cpu",
}
_LENGTH: Final = 50  # newest items that a model reads, as by default in RecBole
_BATCH: Final = 40  # windows of so many items
_RATE: Final = 0.001
_DAY_MS: Final = 86_400_000


class SequenceModel:
    """A model of RecBole by its name. Before the first scores of a day it goes over all that was before:
    ``epochs`` times on the first day, then ``more`` times. There are rows for twice the items of the first
    day; later items have no score."""

    def __init__(self, model: str, epochs: int = 40, more: int = 1, seed: int = 0) -> None:
        self.name = f"{model} of RecBole"
        self._class, self._settings = _load(model)
        self._epochs, self._more, self._day, self._seed = epochs, more, -1, seed
        self._draws = torch.Generator().manual_seed(seed)
        self._sequences: dict[str, list[int]] = defaultdict(list)
        self._learned: set[int] = set()
        self._model: Any = None

    def learn(self, user_id: str, item: int, time_ms: int) -> None:
        self._sequences[user_id].append(item + 1)  # 0 is no item

    def scores(self, user_id: str, now_ms: int) -> tuple[Indices, Floats]:
        if now_ms // _DAY_MS != self._day:
            self._day = now_ms // _DAY_MS
            self._train()
        newest = self._sequences.get(user_id, [])[-_LENGTH:]
        if self._model is None or not newest:
            return np.zeros(0, np.int64), np.zeros(0)
        window = self._window(newest)[None]
        with torch.no_grad():
            output = self._outputs(window)[0, len(newest) - 1]
            scores = (self._model.item_embedding.weight @ output).numpy().astype(np.float64)
        items = np.array(sorted(self._learned), np.int64)
        return items - 1, scores[items]

    def _train(self) -> None:
        if not any(len(items) > 1 for items in self._sequences.values()):
            return
        epochs = self._more
        if self._model is None:
            self._begin(2 * max(map(max, self._sequences.values())))
            epochs = self._epochs
        items = set(chain.from_iterable(self._sequences.values()))
        self._learned = {item for item in items if item < self._model.n_items}
        self._model.train()
        for _ in range(epochs):
            for windows in self._batches():
                outputs, wanted = self._outputs(windows[:, :-1]), windows[:, 1:]
                rows = self._model.item_embedding.weight[: max(items) + 1]
                loss = F.cross_entropy(outputs[wanted > 0] @ rows.t(), wanted[wanted > 0])
                self._optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                self._optimizer.step()
        self._model.eval()

    def _begin(self, items: int) -> None:
        torch.manual_seed(self._seed)
        settings = _FIELDS | self._settings | {"MAX_ITEM_LIST_LENGTH": _LENGTH}
        self._model = self._class(settings, SimpleNamespace(num=lambda field: items + 1))
        self._optimizer = torch.optim.Adam(self._model.parameters(), _RATE)

    def _batches(self) -> Iterator[Tensor]:
        """Windows (B, 1 + length) of all sequences, cut at drawn places, in a drawn order."""
        windows = []
        for items in self._sequences.values():
            first = int(torch.randint(_LENGTH, (1,), generator=self._draws))
            for start in range(first - _LENGTH, len(items) - 1, _LENGTH):
                part = items[max(0, start) : start + _LENGTH + 1]
                if len(part) > 1:
                    windows.append(self._window(part, 1 + _LENGTH))
        order = torch.randperm(len(windows), generator=self._draws).tolist()
        for start in range(0, len(order), _BATCH):
            yield torch.stack([windows[n] for n in order[start : start + _BATCH]])

    def _window(self, items: list[int], length: int = _LENGTH) -> Tensor:
        limit = self._model.n_items
        rows = [item if item < limit else 0 for item in items]
        return torch.tensor(rows + [0] * (length - len(rows)))

    def _outputs(self, windows: Tensor) -> Tensor:
        """The vector after each item."""
        lengths = torch.full((len(windows),), windows.shape[1])
        outputs: Tensor = self._model(windows, lengths)
        return outputs


def _load(model: str) -> tuple[type[Any], dict[str, Any]]:
    """A model's class, whose forward returns all positions, and its published settings."""
    try:
        module = import_module(f"recbole.model.sequential_recommender.{model.lower()}")
    except ImportError as error:
        raise ValueError(
            f"--recbole needs RecBole's {model}, which can't be loaded ({error}): pip install --no-deps "
            "recbole, and pip install colorama colorlog tensorboard texttable thop; or leave the option out"
        ) from error
    file = Path(import_module("recbole").__file__ or "").parent / f"properties/model/{model}.yaml"
    settings: dict[str, Any] = yaml.safe_load(file.read_text("utf-8"))
    if "layer_norm_eps" in settings:  # 1e-12: a text for PyYAML
        settings["layer_norm_eps"] = float(settings["layer_norm_eps"])
    everywhere = {"gather_indexes": lambda self, output, index: output}
    return type(model, (getattr(module, model),), everywhere), settings
