"""Keeps a replica's index accurate beside what is read: maintenance as a follower of no topic."""

from pathlib import Path

from serving.followers.follower import Follower
from serving.index import index_files
from serving.index.faiss_centroids import lists_for, sample_of, train
from serving.replica.index_maintenance import IndexMaintenance, SetProbes, SwapIndex
from serving.replica.item_vectors import ItemVectors


class IndexFollower(Follower[SwapIndex | SetProbes | None]):
    """Turns the maintenance of one index, from ``build`` on."""

    def __init__(self, replica: ItemVectors) -> None:
        super().__init__()
        self._maintenance = IndexMaintenance(replica, train, sample_of, lists_for)
        self._folder = Path(replica.config.state) / index_files.FOLDER
        self._turns = False
        self._change: SwapIndex | SetProbes | None = None

    def build(self) -> None:
        """Builds an index, if one is due, before the first answer."""
        index = self._maintenance.build_now()
        if index is not None:
            index_files.save_centroids(self._folder, index)
            self._maintenance.apply(SwapIndex(index))
        self._turns = True

    def read(self, limit: int) -> SwapIndex | SetProbes | None:
        if self._turns and self._change is None:
            self._change = self._maintenance.turn()
            if isinstance(self._change, SwapIndex):
                index_files.save_centroids(self._folder, self._change.index)
        return self._change

    def swap(self, change: SwapIndex | SetProbes | None) -> None:
        if change is not None:
            self._maintenance.apply(change)

    def apply(self, change: SwapIndex | SetProbes | None) -> None:
        self._change = None
