"""Durable shards in this process behind a client: all lanes at once, nobody to wait for."""

from parameter_server.rpc.parameter_client import LocalClient, route_lanes
from parameter_server.storage.durable_shard import DurableShard


class DurableClient(LocalClient):
    """``durable`` by part. What it learns is written down and published as shards of their own do it."""

    def __init__(self, durable: list[DurableShard]) -> None:
        super().__init__([its.shard for its in durable])
        self.durable = durable

    def exchange(self, step, time_ms, lanes, next_keys, meanwhile=None):  # type: ignore[no-untyped-def]
        for its, own in zip(self.durable, route_lanes(lanes, len(self.durable)), strict=True):
            its.learn(step, time_ms, own)
        return None if next_keys is None else self.lookup(step, next_keys), self.dense(step)

    def close(self) -> None:
        for its in self.durable:
            its.close()
