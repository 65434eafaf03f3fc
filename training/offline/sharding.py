"""Division of an offline job over its workers, of which each has some of the lanes of a step and of the rows.

A job has as many parts of the tables as lanes, whatever the number of workers; the hash of a key decides its
part, and worker w has the lanes and parts w, w + workers, … Lanes are added where a row is, in lane order.
Checkpoints and candidates consist of parts. So the number of workers changes no bit.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from parameter_server.table.routing import Keys, Split, shard_of

# A message to each worker in, one from each worker out, by rank. All workers call it together.
Exchange = Callable[[Sequence[Any]], Sequence[Any]]


@dataclass(frozen=True)
class Sharding:
    """Share of worker ``rank``. A worker beyond the number of parts has none."""

    parts: int = 1
    rank: int = 0
    workers: int = 1
    exchange: Exchange = list  # of a worker without others

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
        return self.exchange([value] * self.workers)


ALONE: Final = Sharding()
