"""Opens the log that a configuration names; imports only that implementation's library."""

from pathlib import Path

from recsys.config.system_config import Config
from recsys.events.records import topics
from recsys.log.protocol import Log
from recsys.process.clock_file import claim_log, clock_of
from recsys.process.disk_budget import topic_bytes


def open_log(config: Config) -> Log:
    """``sqlite``: files under the state folder; ``kafka://…``: the brokers there. Creates no topic."""
    if config.log.url == "sqlite":
        from recsys.log.sqlite_log import SqliteLog

        folder, durability = Path(config.state) / "log", config.log.durability
        return SqliteLog(folder, durability=durability, clock=clock_of(config))
    from recsys.log.kafka_log import KafkaLog

    return KafkaLog(config.log)


def create_topics(log: Log, config: Config) -> None:
    """Creates a system's topics. Raises ValueError if one exists with another number of partitions, and
    LogLost if the log is of a system with another clock."""
    partitions, sqlite = config.log.partitions, config.log.url == "sqlite"  # brokers have own disks
    limits = topic_bytes(config.disk, partitions) if sqlite else {}
    for topic in topics(partitions, config.log.retention_hours, limits):
        log.create(topic)
    claim_log(log, config)
