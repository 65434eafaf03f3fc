"""A line's shards in this process, and the client that reaches them by calls instead of sockets."""

from typing import Any, Final

from parameter_server.rpc.parameter_client import Channel, ShardedClient, WorkerId
from parameter_server.rpc.protocol import Frame
from parameter_server.rpc.shard_service import ShardService
from parameter_server.shard.shard import ShardSpec, digest_of_shards, part_of
from parameter_server.storage.durable_shard import DurableShard, Publish
from parameter_server.storage.reshard import reshard_line
from parameter_server.storage.shard_home import files_of, home_of
from parameter_server.table.dense import Vector
from recsys.config.system_config import Config

_GIVE_UP_S: Final = 1.0


class LocalChannel(Channel):
    """Connection to a shard of this process."""

    _give_up_s = _GIVE_UP_S

    def __init__(self, service: ShardService) -> None:
        self._service = service

    def send(self, frame: Frame) -> None:
        self._frame = frame

    def _attempt(self) -> Frame | str:
        answer = self._service.answer(self._frame)
        self._service.publish()
        return answer

    def close(self) -> None: ...


class LocalShards:
    """All shards of one line and epoch: recovered from their files, or fresh. ``client``: of their only
    worker."""

    def __init__(
        self, spec: ShardSpec, config: Config, publish: Publish, dense: Vector, background: bool = True
    ) -> None:
        """``dense``: initial parameters. ``background``: as in DurableShard."""
        reshard_line(spec, files_of(config), publish, dense)
        self.shards: list[DurableShard] = []
        try:
            for part in range(spec.parts):
                own, first = part_of(spec, part), dense if part == 0 else None
                self.shards.append(DurableShard(own, home_of(own, config), publish, first, background))
        except BaseException:
            self.close()
            raise
        channels = [LocalChannel(ShardService(shard, "")) for shard in self.shards]
        self.client = ShardedClient(spec, channels, WorkerId())

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical state of the line."""
        return digest_of_shards([shard.shard for shard in self.shards])

    def flush(self) -> None:
        """Publishes what waits. Raises an error of the log."""
        for shard in self.shards:
            shard.flush()

    def stop(self) -> None:
        """Takes last snapshots, and closes."""
        for shard in self.shards:
            shard.stop()

    def close(self) -> None:
        """Closes as a kill would: the next start replays what no snapshot has."""
        for shard in self.shards:
            shard.close()

    def statuses(self) -> list[dict[str, Any]]:
        return [shard.status() for shard in self.shards]
