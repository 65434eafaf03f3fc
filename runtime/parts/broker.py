"""The embedded broker's part, for ``log.url`` ``kafka://`` without an address."""

from pathlib import Path

from recsys.config.system_config import Config
from recsys.log.protocol import LogLost
from recsys.process.part_process import Stop
from runtime.supervision.launch_plan import port_of


def run(config: Config, stop: Stop) -> None:
    """Runs the broker on the port of ``log.url``; part and broker end together."""
    from recsys.log.embedded_broker import EmbeddedBroker

    broker = EmbeddedBroker(port_of(config.log.url), Path(config.state) / "run" / "broker.out")
    broker.start()
    stop.heartbeat.address("broker", broker.url)
    try:
        while not stop.wait(0.2):
            if not broker.is_running():
                raise LogLost(
                    f"the broker at {broker.url} ended, and with it the log that it held in memory: stop the "
                    "system (`recsys down`), and start with a new state folder"
                )
    finally:
        broker.stop()
