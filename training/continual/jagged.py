"""Converts the sparse features of a batch to torchrec's KeyedJaggedTensor, if torchrec is installed. Numbers
and gradients are the same either way, bit for bit."""

import importlib
import importlib.util

from recsys.model.batch import Jagged


def installed() -> bool:
    """Whether torchrec is installed. Its import takes a second, so it waits for the first use."""
    return importlib.util.find_spec("torchrec") is not None


def load() -> None:
    """Imports torchrec now, if installed, instead of at the first use."""
    if installed():
        importlib.import_module("torchrec.sparse.jagged_tensor")


def keyed_jagged(sparse: Jagged) -> Jagged:
    """The same keys, values and lengths as a KeyedJaggedTensor; unchanged without torchrec."""
    if not installed():
        return sparse
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

    tensor: Jagged = KeyedJaggedTensor(keys=sparse.keys(), values=sparse.values(), lengths=sparse.lengths())
    return tensor
