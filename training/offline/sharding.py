"""Division of an offline job over its workers, of which each has some of the lanes of a step and of the rows.

A job has as many parts of the tables as lanes, whatever the number of workers; the hash of a key decides its
part, and worker w has the lanes and parts w, w + workers, … Lanes are added where a row is, in lane order.
Checkpoints and candidates consist of parts. So the number of workers changes no bit.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from parameter_server.table.routing import Keys, Split, shard_of

# A message to each worker, and their type, in; one from each out, by rank. All workers call it together.
Exchange = Callable[[Sequence[Any], Any], Sequence[Any]]


def encode(message: Any) -> bytes:
    """A message between workers as MessagePack, with its arrays bit for bit."""
    return msgspec.msgpack.encode(message, enc_hook=lambda a: (a.dtype.str, a.shape, a.tobytes()))


def decode(data: bytes | memoryview, kind: Any) -> Any:
    """A message of the type ``kind``. Raises msgspec.DecodeError for any other data."""
    return msgspec.msgpack.decode(data, type=kind, dec_hook=_array_of)


def _array_of(kind: Any, parts: tuple[str, list[int], bytes]) -> NDArray[Any]:
    dtype, shape, data = parts
    return np.frombuffer(bytearray(data), dtype).reshape(shape)


@dataclass(frozen=True)
class Sharding:
    """Share of worker ``rank``. A worker beyond the number of parts has none."""

    parts: int = 1
    rank: int = 0
    workers: int = 1
    exchange: Exchange = lambda messages, kind: messages  # of a worker without others

    @property
    def own(self) -> range:
        """Numbers of the own lanes and parts."""
        return range(self.rank, self.parts, self.workers)

    def owner_of(self, keys: Keys) -> Keys:
        """The worker that has the row of each key (N,)."""
        return shard_of(keys, self.parts) % self.workers

    def split(self, keys: Keys) -> Split:
        """Splits keys by worker, keeping the order within each."""
        owners = self.owner_of(keys)
        order = np.argsort(owners, kind="stable")
        return Split(order, np.searchsorted(owners[order], np.arange(self.workers + 1)))

    def gather(self, value: Any) -> Sequence[Any]:
        """The value of each worker. No worker goes on before all call it."""
        return self.exchange([value] * self.workers, type(value))


ALONE: Final = Sharding()
