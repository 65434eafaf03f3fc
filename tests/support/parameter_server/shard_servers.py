"""Shards of the toy line behind sockets, in threads of the test, that can be killed and restarted."""

import time
from pathlib import Path

from parameter_server.rpc.parameter_client import ShardedClient, WorkerId, hello, part_of
from parameter_server.rpc.shard_service import ShardService
from parameter_server.rpc.shard_tls import ShardTls
from parameter_server.rpc.transport import Address, SocketChannel, SocketServer
from parameter_server.shard.shard import digest_of_shards
from parameter_server.storage.durable_shard import DurableShard, ShardStorage
from tests.support.parameter_server.small_line import DENSE, toy_spec

TOKEN = "correct horse"
WITHOUT_TLS = ShardTls()


class Servers:
    """One socket server per shard, with all that they published."""

    def __init__(
        self,
        folder: Path,
        parts: int,
        snapshot_every: int = 10,
        patience_s: float = 20,
        tls: ShardTls = WITHOUT_TLS,
    ):
        self.spec, self.folder, self.every = toy_spec(parts), folder, snapshot_every
        self.patience_s, self.tls = patience_s, tls
        self.published: list[bytes] = []
        self.servers: list[SocketServer | None] = [None] * parts
        self.shards: list[DurableShard | None] = [None] * parts
        for part in range(parts):
            self.start(part)

    def start(self, part: int) -> None:
        home = ShardStorage(self.folder / "snapshots", self.folder / f"{part}.wal", self.every, 2)
        shard = DurableShard(
            part_of(self.spec, part), home, self.published.extend, DENSE if part == 0 else None
        )
        shard.flush()
        self.shards[part] = shard
        service = ShardService(shard, TOKEN, self.patience_s)
        self.servers[part] = SocketServer(service, tls=self.tls.shard)

    def kill(self, part: int) -> None:
        """As a crash: memory is lost, connections break, files stay as they are."""
        server, shard = self.servers[part], self.shards[part]
        self.servers[part] = self.shards[part] = None
        assert server is not None and shard is not None
        server.close()
        shard.close()

    def lose_wal(self, part: int) -> None:
        (self.folder / f"{part}.wal").unlink()

    def address(self, part: int) -> Address:
        server = self.servers[part]
        if server is None:
            raise ConnectionError(f"shard {part} is down")
        return server.address

    def client(self, worker: int = 0, workers: int = 1, generation: int = 1) -> ShardedClient:
        who = WorkerId(worker, workers, generation)
        channels = [
            SocketChannel(
                lambda part=part: self.address(part),
                lambda token, part=part: hello(self.spec, part, who, token),
                give_up_s=20,
                sleep=lambda pause_s: time.sleep(min(pause_s, 0.02)),
                tls=self.tls.worker,
            )
            for part in range(self.spec.parts)
        ]
        return ShardedClient(self.spec, channels, who)

    def digest(self) -> str:
        return digest_of_shards([shard.shard for shard in self.shards if shard is not None])

    def flush(self) -> None:
        """Waits until all that was answered for is published: that comes after the answer."""
        for shard in self.shards:
            if shard is not None:
                shard.flush()

    def __enter__(self) -> "Servers":
        return self

    def __exit__(self, *error: object) -> None:
        for part, server in enumerate(self.servers):
            if server is not None:
                self.kill(part)
