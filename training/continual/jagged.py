"""The sparse features of a batch as torchrec's KeyedJaggedTensor, where torchrec is installed.

The numbers are the same either way, so are the gradients, bit for bit: a batch that came from the trainer
goes into torchrec's modules as it is, and a laptop without torchrec still trains.
"""

import importlib
import importlib.util

from recsys.model.batch import Jagged


def installed() -> bool:
    """Whether torchrec is there. Its import takes a second, so it waits for the first use."""
    return importlib.util.find_spec("torchrec") is not None


def load() -> None:
    """Imports torchrec now, where it is there, instead of at the first use."""
    if installed():
        importlib.import_module("torchrec.sparse.jagged_tensor")


def keyed_jagged(sparse: Jagged) -> Jagged:
    """The same keys, values and lengths as a KeyedJaggedTensor; unchanged without torchrec."""
    if not installed():
        return sparse
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

    made: Jagged = KeyedJaggedTensor(
        keys=sparse.keys(), values=sparse.values(), lengths=sparse.lengths()
    )
    return made
